"""What is lost or damaged: that it is told in a line, and that embedding again puts it right."""

import copy
import json
import shutil

import pytest
import torch

import layerlock_hf
from layerlock_hf import LayerLockViTModel
from layerlock_hf.cli import embed as program
from layerlock_hf.embedding import making, records, writing
from layerlock_hf.embedding.shards import FORMATS


SETTINGS = {"window": "8f", "stride": "4f", "batch_size": 2, "windows_per_shard": 4, "videos_at_once": 3}
RANK, MANIFEST = "ranks/00000-of-00001.json", "manifest.json"


@pytest.fixture(scope="module")
def whole(embed_in_each_format):
    """A folder of each format."""
    return embed_in_each_format(**SETTINGS)


def tree(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def flip(path):
    """Change a bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_that_are_lost_or_damaged_are_made_anew_and_no_others(
    kind, whole, videos, model, tmp_path, monkeypatch, caplog
):
    out = shutil.copytree(whole[kind], tmp_path / "out")
    shards = sorted((out / "data").iterdir())
    assert len(shards) > 4
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-7])
    shards[-1].write_bytes(b"")
    flip(shards[3])
    with pytest.raises(
        ValueError, match=r"is missing or damaged \(.*\): the same `layerlock embed` command with --ver"
    ):
        layerlock_hf.search(out, str(videos / "v3.mp4"))
    written = []
    real = writing.write_aside
    monkeypatch.setattr(writing, "write_aside", lambda path: written.append(path) or real(path))
    layerlock_hf.embed(str(videos), out, model, format=kind, **SETTINGS)
    assert written == [shards[0], shards[2], shards[-1]]
    written.clear()
    layerlock_hf.embed(str(videos), out, model, format=kind, verify=True, num_workers=2, **SETTINGS)
    assert written == [shards[3]] and tree(out) == tree(whole[kind])
    monkeypatch.setattr(making, "Lanes", None)
    layerlock_hf.embed(str(videos), out, model, format=kind, verify=True, **SETTINGS)


def test_a_shard_lost_before_the_end_is_made_anew(whole, videos, model, tmp_path, monkeypatch):
    out, count = tmp_path / "out", iter(range(100))
    real = writing.write_record

    def stop(*arguments):
        if next(count) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_record", stop)
        with pytest.raises(KeyboardInterrupt):
            layerlock_hf.embed(str(videos), out, model, **SETTINGS)
    sorted((out / "data").iterdir())[1].unlink()
    layerlock_hf.embed(str(videos), out, model, **SETTINGS)
    assert tree(out) == tree(whole["parquet"])


def test_a_shard_whose_videos_have_changed_cannot_be_made_anew(write_video, model, tmp_path):
    video = write_video(tmp_path / "videos" / "v.mp4", 30)
    out, size = tmp_path / "out", video.stat().st_size
    layerlock_hf.embed(str(video), out, model, **SETTINGS)
    write_video(video, 12)
    video.write_bytes(video.read_bytes().ljust(size, b"\0"))
    (shard,) = (out / "data").glob("*-000000.parquet")
    shard.unlink()
    with pytest.raises(ValueError, match="000000.parquet cannot be made anew, as its videos do not have the windows"):
        layerlock_hf.embed(str(video), out, model, **SETTINGS)


def without(path):
    """A change that leaves out what is at a path of keys."""

    def change(record):
        *keys, last = path
        for key in keys:
            record = record[key]
        del record[last]

    return change


# What becomes of a record, and what is said of it
DAMAGE = {
    "empty": (lambda text: "", "it is empty"),
    "cut": (lambda text: text[: len(text) // 2], "Expecting|Unterminated"),
    "zeros": (lambda text: "\0" * len(text), "Expecting value"),
    "nested": (lambda text: "[" * 100_000, "it is nested too deeply"),
}
EDITS = {
    "it lacks counts.rows": without(["counts", "rows"]),
    "it lacks settings.format": without(["settings", "format"]),
    r"it lacks shards\[1\].bytes": without(["shards", 1, "bytes"]),
    "settings.videos is no object": lambda record: record["settings"].update(videos="4711"),
    "settings.format is 'csv'": lambda record: record["settings"].update(format="csv"),
    "shards is no list": lambda record: record.update(shards=None),
    "settings.depths.0. is '6'": lambda record: record["settings"].update(depths=["6"]),
    "settings.depths.0. is True": lambda record: record["settings"].update(depths=[True]),
    "settings.frame_rate is 'abc'": lambda record: record["settings"].update(frame_rate="abc"),
    r"columns are \['depth_6'\], and depths \[\]": lambda record: record["settings"].update(depths=[]),
    r"columns are \[\], and depths \[6\]": lambda record: record.update(columns={}),
    "columns.depth_6 is 'a'": lambda record: record["columns"].update(depth_6="a"),
    r"columns.depth_6 is \[\]": lambda record: record["columns"].update(depth_6=[]),
    "steps is 0": lambda record: record.update(steps=0),
    r"shards have \d+ rows, counts.rows is \d+": lambda record: record["shards"].pop(0),
    "counts.windows 7": lambda record: record["counts"].update(windows=7),
}


def begin_again(record):
    record["is_complete"], record["counts"]["videos"] = False, 0
    record["position"] = {"turn": 0, "lanes": [[0, 0]] * 3}


EDITS_OF_RANKS = {
    r"counts.videos is 9, and position .*\[0, 0\]": lambda record: record["position"].update(lanes=[[0, 0]] * 3),
    "position is not where the last shard ends": begin_again,
    "counts.videos is 9 of 12, and is_complete True": lambda record: record["settings"]["videos"].update(
        num_videos=12
    ),
    r"position is \{.*'turn': 3": lambda record: record["position"].update(turn=3),
    r"shards\[2\].end is .*\[1\]": lambda record: record["shards"][2]["end"].update(lanes=[[1], [1], [1]]),
    "world_size is 2": lambda record: record.update(world_size=2),
}


def edited(change):
    def edit(text):
        record = json.loads(text)
        change(record)
        return json.dumps(record)

    return edit


DAMAGED = r"{} is damaged, or of another version of layerlock_hf \(.*({}).*\): {}"
OF_MANIFEST = "the same `layerlock embed` command writes it anew"
OF_RANK = "delete it, and the same `layerlock embed` command makes the vectors of this rank anew"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records(damage, whole, videos, model, tmp_path):
    out = shutil.copytree(whole["parquet"], tmp_path / "out")
    change, told = DAMAGE[damage]
    (out / MANIFEST).write_text(change((out / MANIFEST).read_text()))
    with pytest.raises(ValueError, match=DAMAGED.format(out / MANIFEST, told, OF_MANIFEST)):
        layerlock_hf.search(out, str(videos / "v3.mp4"))
    layerlock_hf.embed(str(videos), out, model, **SETTINGS)
    assert tree(out) == tree(whole["parquet"])
    (out / RANK).write_text(change((out / RANK).read_text()))
    with pytest.raises(ValueError, match=DAMAGED.format(out / RANK, told, OF_RANK)):
        layerlock_hf.embed(str(videos), out, model, **SETTINGS)
    (out / RANK).unlink()
    layerlock_hf.embed(str(videos), out, model, **SETTINGS)
    assert tree(out) == tree(whole["parquet"])


@pytest.mark.parametrize("told", EDITS)
def test_edited_records(told, whole, tmp_path):
    (tmp_path / "ranks").mkdir()
    for name in (RANK, MANIFEST):
        record = json.loads((whole["parquet"] / name).read_text())
        EDITS[told](record)
        (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=DAMAGED.format(tmp_path / MANIFEST, told, OF_MANIFEST)):
        records.read_manifest(tmp_path)
    with pytest.raises(ValueError, match=DAMAGED.format(tmp_path / RANK, told, OF_RANK)):
        records.read_records(tmp_path)


@pytest.mark.parametrize("told", EDITS_OF_RANKS)
def test_edited_records_of_ranks(told, whole, tmp_path):
    (tmp_path / "ranks").mkdir()
    record = json.loads((whole["parquet"] / RANK).read_text())
    EDITS_OF_RANKS[told](record)
    (tmp_path / RANK).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=DAMAGED.format(tmp_path / RANK, told, OF_RANK)):
        records.read_records(tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_shapes_that_the_vectors_do_not_have(kind, whole, videos, model, tmp_path):
    """Of a manifest and of a record, which cannot tell by themselves."""
    out = shutil.copytree(whole[kind], tmp_path / "out")
    for name in (RANK, MANIFEST):
        record = json.loads((out / name).read_text())
        record["columns"]["depth_6"] = [64]
        (out / name).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"columns.depth_6 must have as many .* 32, got .64.: .*: {OF_MANIFEST}"):
        next(records.read_shards(out))
    with pytest.raises(ValueError, match=f"depth_6 must be .32., as this model .* got .64.: .*: {OF_MANIFEST}"):
        layerlock_hf.search(out, str(videos / "v3.mp4"))
    with pytest.raises(ValueError, match=f"depth_6 must be .32., .* got .64.: {out / RANK} is damaged: {OF_RANK}"):
        layerlock_hf.embed(str(videos), out, model, format=kind, **SETTINGS)


def test_faults_are_found_at_any_depth():
    record = {"position": {"turn": 1, "lanes": [[0, 1], [2, 3]]}}
    form = {"position": records.POSITION}
    assert records.fault_in(record, form) is None
    worse = copy.deepcopy(record)
    worse["position"]["lanes"][1][0] = None
    assert records.fault_in(worse, form) == "position.lanes[1][0] is None"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_leaves_nothing_half_written(kind, whole, videos, model, tmp_path, monkeypatch):
    out, command = tmp_path / "out", [str(videos), str(tmp_path / "out"), "--model", model, "--format", kind]
    command += [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    command += ["--num_workers", "0", "--device", "cpu"]
    real = writing.Path.write_bytes

    def write_half(path, data):
        if "000002" not in path.name:
            return real(path, data)
        real(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing.Path, "write_bytes", write_half)
        told = f"error: No space left on device: {out}: free some space, and run the same command to go on"
        with pytest.raises(SystemExit, match=told):
            program.main(command)
    assert len(list((out / "data").iterdir())) == 2
    assert program.main(command) == 0
    assert tree(out) == tree(whole[kind])


def test_a_model_that_has_diverged_is_refused(videos, model, tmp_path):
    broken = shutil.copytree(model, tmp_path / "model")
    encoder = LayerLockViTModel.from_pretrained(broken)
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    encoder.save_pretrained(broken)
    with pytest.raises(
        ValueError, match="model must give finite vectors, got NaN or infinity: take a checkpoint from"
    ):
        layerlock_hf.embed(str(videos / "v0.mp4"), tmp_path / "out", str(broken), **SETTINGS)
