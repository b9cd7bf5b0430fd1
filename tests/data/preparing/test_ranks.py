import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import tarfile
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from layerlock_hf.data.preparing import PrepareArguments, examining, missing_ranks, prepare, ranks, read_report
from layerlock_hf.data.preparing.journal import Journal
from layerlock_hf.data.preparing.packing import Packing


BAD = {"empty.mp4": "empty", "text.mp4": "text", "rotten.mp4": "damaged"}
FAST = {"timeout": 20, "shard_size": "8KB"}


@pytest.fixture(scope="session")
def source(tmp_path_factory, make_video):
    """Nine files in two folders: five whole videos, one truncated and three that are none."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "sub").mkdir()
    for index in range(5):
        make_video(folder / ("sub" if index % 2 else ".") / f"v{index}.mp4", times=range(20 + index))
    whole = make_video(folder / "cut.mp4", times=range(60)).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video" * 10)
    (folder / "rotten.mp4").write_bytes(bytes(range(256)) * 20)
    return folder


def manifest_of(output, rank=0, world_size=1):
    return pq.read_table(output / f"manifest-{rank:05d}-of-{world_size:05d}.parquet").to_pylist()


def sums(output):
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_file_has_its_fate(source, tmp_path):
    assert prepare(str(source), tmp_path / "out", PrepareArguments(**FAST), num_workers=2)
    report = {line["name"]: line for line in read_report(tmp_path / "out")}
    assert len(report) == 9
    assert {name: line["kind"] for name, line in report.items() if line["status"] == "bad"} == BAD
    assert [name for name, line in report.items() if line["status"] == "partial"] == ["cut.mp4"]
    packed = {row["name"]: row for row in manifest_of(tmp_path / "out")}
    assert packed.keys() == {name for name, line in report.items() if line["is_packed"]} == report.keys() - BAD
    assert packed["sub/v1.mp4"]["num_frames"] == 21 and packed["sub/v1.mp4"]["has_constant_frame_rate"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data",
        "manifest-00000-of-00001.parquet",
        "report-00000-of-00001.jsonl",
    ]


def test_tar_shards_hold_the_files_at_their_offsets(source, tmp_path):
    prepare(str(source), tmp_path, PrepareArguments(**FAST))
    rows = manifest_of(tmp_path)
    assert len({row["path"] for row in rows}) > 1
    for row in rows:
        content = (tmp_path / row["path"]).read_bytes()
        assert content[row["offset"] :][: row["size"]] == (source / row["name"]).read_bytes()
    shards = [str(path) for path in sorted((tmp_path / "data").iterdir())]
    for path in shards:
        with tarfile.open(path) as tar:
            assert sum(entry.size for entry in tar if entry.name.endswith(".mp4")) <= 8000
    found = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=str(tmp_path / "cache"))
    found = found.cast_column("mp4", datasets.Video(decode=False))
    assert [row["json"]["name"] for row in found] == [row["name"] for row in rows]
    assert found[0]["mp4"]["bytes"] == (source / rows[0]["name"]).read_bytes()


def test_parquet_shards_are_videos_to_the_datasets_library(source, tmp_path):
    prepare(str(source), tmp_path, PrepareArguments(shard_format="parquet", **FAST))
    rows = manifest_of(tmp_path)
    for row in rows:
        group = pq.ParquetFile(tmp_path / row["path"]).read_row_group(row["row_group"], columns=["video"])
        video = group.column("video")[row["row"]].as_py()
        assert video == {"bytes": (source / row["name"]).read_bytes(), "path": row["name"]}
    shards = [str(path) for path in sorted((tmp_path / "data").iterdir())]
    found = datasets.load_dataset("parquet", data_files=shards, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(found.features["video"], datasets.Video)
    assert len(found) == len(rows)


def test_row_groups_are_small(tmp_path, monkeypatch, source):
    monkeypatch.setattr("layerlock_hf.data.preparing.shards.ROW_GROUP_SIZE", 4000)
    prepare(str(source), tmp_path, PrepareArguments(shard_format="parquet", timeout=20))
    rows = manifest_of(tmp_path)
    assert len({row["path"] for row in rows}) == 1
    sizes = {}
    for row in rows:
        sizes.setdefault(row["row_group"], []).append(row["size"])
    assert len(sizes) > 1
    assert all(len(group) == 1 or sum(group) <= 4000 for group in sizes.values())


@pytest.mark.parametrize(("labels", "kind"), [((3, 5), "int64"), (("kick", "hug"), "string")])
@pytest.mark.parametrize("shard_format", ["tar", "parquet"])
def test_labels(source, tmp_path, labels, kind, shard_format):
    listing = source / f".{shard_format}-{kind}.csv"
    listing.write_text(f"path,label\nv0.mp4,{labels[0]}\nsub/v1.mp4,{labels[1]}\n")
    prepare(str(listing), tmp_path, PrepareArguments(shard_format=shard_format))
    rows = manifest_of(tmp_path)
    # The csv module reads text; what `load_videos` makes of it is what is written
    assert {row["name"]: str(row["label"]) for row in rows} == {"v0.mp4": str(labels[0]), "sub/v1.mp4": str(labels[1])}
    shard = next((tmp_path / "data").iterdir())
    if shard_format == "tar":
        with tarfile.open(shard) as tar:
            found = [json.load(tar.extractfile(entry)) for entry in tar if entry.name.endswith(".json")]
        assert found == [{"name": row["name"], "label": row["label"]} for row in rows]
    else:
        assert pq.read_table(shard).column("label").to_pylist() == [row["label"] for row in rows]


@pytest.mark.parametrize(
    ("bad", "left_out"),
    [("drop", set(BAD)), ("drop_partial", {*BAD, "cut.mp4"}), ("keep", {"empty.mp4"})],
)
def test_what_becomes_of_bad_files(source, tmp_path, bad, left_out):
    prepare(str(source), tmp_path, PrepareArguments(bad=bad))
    assert {line["name"] for line in read_report(tmp_path) if not line["is_packed"]} == left_out


def test_short_videos_are_left_out(source, tmp_path):
    prepare(str(source), tmp_path, PrepareArguments(min_frames=22))
    short = {line["name"]: line["reason"] for line in read_report(tmp_path) if line["status"] == "short"}
    assert short == {"v0.mp4": "20 frames", "sub/v1.mp4": "21 frames"}


def test_transcoded_videos(source, tmp_path):
    prepare(str(source), tmp_path, PrepareArguments(short_side=24, gop=4), num_workers=2)
    rows = manifest_of(tmp_path)
    assert len(rows) == 6
    for row in rows:
        assert (row["height"], row["width"]) == (24, 32) and row["keyframe_interval"] <= 4
        video = (tmp_path / row["path"]).read_bytes()[row["offset"] :][: row["size"]]
        assert examining.probe_video(str(_file(tmp_path / "one.mp4", video)))[0].num_frames == row["num_frames"]
    report = {line["name"]: line for line in read_report(tmp_path)}
    assert report["cut.mp4"]["status"] == "partial"
    assert report["cut.mp4"]["prepared"]["facts"]["num_frames"] == report["cut.mp4"]["facts"]["num_frames"]
    assert report["v0.mp4"]["facts"]["height"] == 48


def _file(path, content):
    path.write_bytes(content)
    return path


def test_what_needs_no_change_is_copied(source, tmp_path):
    prepare(str(source), tmp_path, PrepareArguments(short_side=48, gop=8))
    whole = [row for row in manifest_of(tmp_path) if row["status"] == "ok"]
    assert len(whole) == 5
    for row in whole:
        video = (tmp_path / row["path"]).read_bytes()[row["offset"] :][: row["size"]]
        assert video == (source / row["name"]).read_bytes()


def test_ranks_share_the_videos(source, tmp_path):
    for rank in range(2):
        assert missing_ranks(tmp_path, 2) == list(range(rank, 2))
        prepare(str(source), tmp_path, PrepareArguments(**FAST), rank=rank, world_size=2)
    assert missing_ranks(tmp_path, 2) == []
    rows = [row for rank in range(2) for row in manifest_of(tmp_path, rank, 2)]
    assert len(rows) == len({row["name"] for row in rows}) == 6
    assert len(read_report(tmp_path)) == 9
    assert {row["path"].split("-")[1] for row in rows} == {"00000", "00001"}
    with pytest.raises(ValueError, match="was written with a world_size other than 1"):
        prepare(str(source), tmp_path, PrepareArguments(**FAST))


def test_ranks_that_begin_together_do_the_same(source, tmp_path, monkeypatch):
    finish = Packing.finish

    def meanwhile(packing):
        if packing.job.rank == 1:
            prepare(str(source), tmp_path, PrepareArguments(seed=1), 0, 2)
        finish(packing)

    monkeypatch.setattr(Packing, "finish", meanwhile)
    with pytest.raises(ValueError, match="seed was 1 there, and is 0 now"):
        prepare(str(source), tmp_path, PrepareArguments(), 1, 2)


def test_more_ranks_than_videos(source, tmp_path):
    prepare(str(source), tmp_path, PrepareArguments(), rank=10, world_size=20)
    assert manifest_of(tmp_path, 10, 20) == []


def test_a_crash_and_a_hang_are_reported(source, tmp_path, monkeypatch):
    probe_video = examining.probe_video

    def probe(path, *arguments):
        if Path(path).name == "v0.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        if Path(path).name == "v1.mp4":
            signal.pause()
        if Path(path).name == "v2.mp4":
            raise KeyError("a mistake of ours")
        return probe_video(path, *arguments)

    monkeypatch.setattr(examining, "probe_video", probe)
    prepare(str(source), tmp_path, PrepareArguments(timeout=1), num_workers=2)
    report = {line["name"]: line for line in read_report(tmp_path)}
    assert report["v0.mp4"]["kind"] == "crash"
    assert report["sub/v1.mp4"]["kind"] == "timeout"
    assert (report["v2.mp4"]["kind"], report["v2.mp4"]["reason"]) == ("error", "error: KeyError: 'a mistake of ours'")
    assert len(manifest_of(tmp_path)) == 3


@pytest.fixture
def finished(source, tmp_path):
    """The files that a run leaves which nothing disturbs."""
    prepare(str(source), tmp_path / "finished", ARGUMENTS)
    return sums(tmp_path / "finished")


ARGUMENTS = PrepareArguments(short_side=24, **FAST | {"shard_size": "2KB"})


class Stopped(Exception):
    pass


@pytest.mark.parametrize("where", [(Journal, "add_video"), (Journal, "add_shard"), (Packing, "_pack")])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_stopped_run_goes_on(source, tmp_path, monkeypatch, finished, where, is_before):
    """At the first call of what changes files, then at the second, and so on, just before it and just after it."""
    owner, name = where
    method = getattr(owner, name)
    num_stops = 0
    while not (tmp_path / "out" / "manifest-00000-of-00001.parquet").exists():
        num_stops += 1
        calls = itertools.count(1)

        def stop(*arguments, calls=calls, last=num_stops):
            is_last = next(calls) == last
            if is_last and is_before:
                raise Stopped
            method(*arguments)
            if is_last:
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            with contextlib.suppress(Stopped):
                prepare(str(source), tmp_path / "out", ARGUMENTS)
    assert num_stops > 2
    assert sums(tmp_path / "out") == finished


def test_a_torn_journal(tmp_path):
    journal = Journal(tmp_path / "journal", {"seed": 0})
    journal.add_video(3, {"status": "ok"})
    journal.add_video(4, {"status": "ok"})
    journal.close()
    content = (tmp_path / "journal").read_bytes()
    for end in range(len(content) - 1, len(content) - 20, -1):
        (tmp_path / "journal").write_bytes(content[:end])
        journal = Journal(tmp_path / "journal", {"seed": 0})
        assert journal.videos == {3: {"status": "ok"}}
        journal.add_video(4, {"status": "ok"})
        journal.close()
        assert (tmp_path / "journal").read_bytes() == content


def test_a_journal_of_nothing_is_in_the_way_of_no_job(tmp_path):
    Journal(tmp_path / "journal", {"seed": 0}).close()
    journal = Journal(tmp_path / "journal", {"seed": 1})
    journal.add_video(0, {})
    journal.close()
    with pytest.raises(ValueError, match="seed was 1 there, and is 0 now"):
        Journal(tmp_path / "journal", {"seed": 0})


def test_a_finished_run_is_left_alone(source, tmp_path):
    prepare(str(source), tmp_path, ARGUMENTS)
    before = sums(tmp_path)
    assert not prepare(str(source), tmp_path, ARGUMENTS)
    assert sums(tmp_path) == before
    with pytest.raises(ValueError, match="seed was 0 there, and is 1 now: choose another folder"):
        prepare(str(source), tmp_path, PrepareArguments(**{**vars(ARGUMENTS), "seed": 1}))


def test_changed_sources_and_settings_are_refused(tmp_path, make_video, monkeypatch):
    folder, output = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    for index in range(3):
        make_video(folder / f"{index}.mp4", times=range(5))
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "write_report", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            prepare(str(folder), output)
    with pytest.raises(ValueError, match="gop was None there, and is 30 now"):
        prepare(str(folder), output, PrepareArguments(gop=30))
    make_video(folder / "1.mp4", times=range(6))
    with pytest.raises(ValueError, match="'1.mp4' has changed since it was examined"):
        prepare(str(folder), output)
    make_video(folder / "3.mp4", times=range(6))
    with pytest.raises(ValueError, match="num_videos was 3 there, and is 4 now"):
        prepare(str(folder), output)


@pytest.fixture
def namesakes(tmp_path, make_video):
    """Two folders of other videos of the same names."""
    folders = tmp_path / "first", tmp_path / "second"
    for folder, num_frames in zip(folders, (5, 9), strict=True):
        folder.mkdir()
        for index in range(2):
            make_video(folder / f"{index}.mp4", times=range(num_frames))
    return folders


def test_other_videos_of_the_same_names_are_refused(tmp_path, namesakes):
    (first, second), output = namesakes, tmp_path / "out"
    prepare(str(first), output)
    with pytest.raises(
        ValueError, match=r"was made from other videos, as '\d.mp4' had \d+ bytes and now has \d+: choose another"
    ):
        prepare(str(second), output)
    shutil.copytree(first, tmp_path / "moved", copy_function=shutil.copy)  # of other times
    assert not prepare(str(tmp_path / "moved"), output)


def test_ranks_do_not_mix_folders(tmp_path, namesakes):
    (first, second), output = namesakes, tmp_path / "out"
    prepare(str(first), output, rank=0, world_size=2)
    with pytest.raises(ValueError, match="00000-of-00002.parquet was made from other videos, as"):
        prepare(str(second), output, rank=1, world_size=2)
    assert missing_ranks(output, 2) == [1]


def test_a_share_of_which_nothing_was_packed_is_done_anew(source, tmp_path):
    output, strict = tmp_path / "out", PrepareArguments(**FAST, min_frames=100)
    assert prepare(str(source), output, strict) and not manifest_of(output)
    assert not prepare(str(source), output, strict)
    assert prepare(str(source), output, PrepareArguments(**FAST)) and manifest_of(output)
    with pytest.raises(ValueError, match="min_frames was 1 there, and is 100 now"):
        prepare(str(source), output, strict)


@pytest.mark.parametrize("name", ["config.json", "data", "report.md"])
def test_folders_of_something_else_are_left_alone(source, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    with pytest.raises(ValueError, match=f"out holds a '{name}' from something else: choose a new folder"):
        prepare(str(source), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_full_disk_keeps_what_is_done(source, tmp_path, monkeypatch, finished):
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        patch.setattr(examining, "transcode", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(str(source), tmp_path / "out", ARGUMENTS)
    prepare(str(source), tmp_path / "out", ARGUMENTS)
    assert sums(tmp_path / "out") == finished


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_format": "zip"}, "shard_format must be one of tar, parquet, got 'zip'"),
        ({"shard_size": "many"}, "shard_size must be a size such as 512MB, got 'many'"),
        ({"min_frames": 0}, "min_frames must be at least 1, got 0"),
        ({"gop": 0}, "gop must be at least 1, got 0"),
        ({"crf": 60}, "crf must be between 0 and 51, got 60"),
        ({"crf": 30}, "crf is set but short_side and gop are not, so nothing is re-encoded: set one"),
        ({"timeout": 0}, "timeout must be between 0.1 and 1e6 seconds, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PrepareArguments(**settings)


def test_sources_are_checked(source, tmp_path, write_tar):
    with pytest.raises(ValueError, match="does not exist"):
        prepare(str(tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(ValueError, match="lies within"):
        prepare(str(source), source / "out")
    twice = tmp_path / "list.csv"
    twice.write_text(f"path\n{source}/v0.mp4\n{source}/v0.mp4\n")
    with pytest.raises(ValueError, match="twice: name every file once"):
        prepare(str(twice), tmp_path / "out")
    twice.write_text("path\nhttp://127.0.0.1:9/a.mp4\n")
    with pytest.raises(ValueError, match="only local files can be prepared"):
        prepare(str(twice), tmp_path / "out")
    write_tar(tmp_path / "tars" / "a.tar", [("a.mp4", b"video")])
    with pytest.raises(ValueError, match="packed into other files: only videos in files of their own"):
        prepare(str(tmp_path / "tars"), tmp_path / "out")
    with pytest.raises(ValueError, match="rank must be at least 0 and less than world_size=2, got 2"):
        prepare(str(source), tmp_path / "out", rank=2, world_size=2)
    with pytest.raises(ValueError, match="world_size must be at least 1, got 0"):
        prepare(str(source), tmp_path / "out", world_size=0)
    with pytest.raises(ValueError, match="source must be a folder of videos, or a list of them, got an empty name"):
        prepare("", tmp_path / "out")
