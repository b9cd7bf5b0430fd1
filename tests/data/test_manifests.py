"""Prepared folders: manifests of all processes, and what they may say."""

import pyarrow
import pyarrow.parquet
import pytest

from layerlock_hf.data import DecodingError, fetch, load_videos, name_of
from layerlock_hf.data.indexes import index_tar


@pytest.fixture
def prepare(write_tar):
    """A function that writes what one process prepares: a tar of three videos, and its manifest."""

    def write(folder, rank, num_ranks=1, **changes):
        shard = f"data/train-{rank:05}-00000.tar"
        members = [(f"sub/{rank}{index}.mp4", b"%d%d" % (rank, index) * 600) for index in range(3)]
        index = index_tar(write_tar(folder / shard, members))
        columns = {
            "path": [shard] * 3,
            "name": index["name"],
            "offset": index["offset"],
            "size": index["size"],
            "label": ["walk", "run", "walk"],
            "depth": ["depth/a.npz", None, None],
            "num_frames": [30, 40, 50],
        }
        columns = {name: values for name, values in (columns | changes).items() if values is not None}
        name = f"manifest-{rank:05}-of-{num_ranks:05}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / name)
        return str(folder / name)

    return write


@pytest.mark.parametrize("where", ["folder", "folder/", "manifest", "url", "url/", "url of manifest"])
def test_a_prepared_folder(website, prepare, where):
    folder = website.root / "prepared"
    folder.mkdir()
    manifests = [prepare(folder, rank, 2) for rank in range(2)]
    (folder / "report.json").write_text("{}")
    (folder / "stray.mp4").write_bytes(b"x")
    base = f"{website.url}/prepared" if "url" in where else str(folder)
    end = "/manifest-00001-of-00002.parquet" if "manifest" in where else "/" if where.endswith("/") else ""
    videos = load_videos(base + end)
    assert len(manifests) == 2 and len(videos) == 6
    assert [fetch(row)[:2] for row in videos] == [b"00", b"01", b"02", b"10", b"11", b"12"]
    row = videos[4]
    assert row["video"] == {"path": f"{base}/data/train-00001-00000.tar", "bytes": None}
    assert name_of(row, 4) == f"{base}/data/train-00001-00000.tar/sub/11.mp4"
    assert (row["label"], row["depth"]) == ("run", None)
    assert videos[0]["depth"] == f"{base}/depth/a.npz"


def test_prepared_parquet_shards(tmp_path):
    (tmp_path / "data").mkdir()
    contents = [b"a" * 9000, b"b", b"c"]
    shard = tmp_path / "data" / "train-00000-00000.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"video": contents}), shard, row_group_size=2)
    rows = {"path": ["data/train-00000-00000.parquet"] * 3, "name": ["a", "b", "c"]}
    # Compressed, the shard is smaller than its first video
    manifest = pyarrow.table(rows | {"row_group": [0, 0, 1], "row": [0, 1, 0], "size": [9000, 1, 1]})
    pyarrow.parquet.write_table(manifest, tmp_path / "manifest-00000-of-00001.parquet")
    videos = load_videos(str(tmp_path))
    assert [fetch(row) for row in videos] == contents
    pyarrow.parquet.write_table(pyarrow.table({"video": [b"a", b"b", b"c"]}), shard, row_group_size=2)
    with pytest.raises(DecodingError, match="^shard changed: row 0 of row group 0 has 1 bytes, not 9000"):
        fetch(videos[0])


def test_a_process_that_prepared_nothing(tmp_path, prepare):
    prepare(tmp_path, 0, 2)
    empty = pyarrow.table({"path": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "manifest-00001-of-00002.parquet")
    assert len(load_videos(str(tmp_path))) == 3


def test_the_manifests_of_all_processes_must_be_there(website, prepare):
    for rank in (0, 2):
        path = prepare(website.root, rank, 4)
    missing = "manifest-00001-of-00004.parquet, .*manifest-00003-of-00004.parquet"
    for source in (str(website.root), path, website.url):
        with pytest.raises(ValueError, match=f"lacks .*{missing}"):
            load_videos(source)
    with pytest.raises(ValueError, match="manifest-00001-of-00004.parquet' cannot be read: no such file"):
        load_videos(f"{website.url}/manifest-00000-of-00004.parquet")
    prepare(website.root, 0, 1)
    with pytest.raises(ValueError, match="several preparations, .*00001.parquet' and .*00004.*: keep those of one"):
        load_videos(str(website.root))


def test_shards_must_be_there_and_whole(tmp_path, prepare):
    prepare(tmp_path, 0)
    shard = tmp_path / "data" / "train-00000-00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ValueError, match="train-00000-00000.tar' is truncated, as .* names 5808 bytes"):
        load_videos(str(tmp_path))
    shard.unlink()
    with pytest.raises(ValueError, match="names .*train-00000-00000.tar', which is missing"):
        load_videos(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"path": None},
        {"offset": None},
        {"size": [1, None, 1]},
        {"size": [1, -1, 1]},
        {"offset": [512, 0, 512]},
        {"offset": ["a", "b", "c"]},
        {"offset": None, "size": None, "row_group": [0, 0, 0], "row": [0, -1, 0]},
        {"row_group": [0, 0, 0], "row": [0, 1, 2]},
        {"path": ["data/train-00000-00000.tar", None, None]},
    ],
)
def test_a_parquet_file_that_is_no_manifest(tmp_path, prepare, changes):
    prepare(tmp_path, 0, **changes)
    with pytest.raises(ValueError, match="manifest-00000-of-00001.parquet' is not a manifest"):
        load_videos(str(tmp_path))


@pytest.mark.parametrize("name", ["../other.tar", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a.tar"])
def test_a_manifest_at_a_url_names_what_lies_beside_it_alone(website, prepare, name):
    for column in ("path", "depth"):
        prepare(website.root, 0, **{column: [name] * 3})
        with pytest.raises(ValueError, match="row 1: .*does not lie under"):
            load_videos(website.url)


def test_a_manifest_on_disk_may_be_confined(tmp_path, prepare, write_tar):
    (tmp_path / "root").mkdir()
    write_tar(tmp_path / "other.tar", [("a.mp4", b"x" * 9000)])
    prepare(tmp_path / "root", 0, path=["../other.tar"] * 3)
    assert len(load_videos(str(tmp_path / "root"))) == 3
    with pytest.raises(ValueError, match="row 1 names .*other.tar', which does not lie in"):
        load_videos(str(tmp_path / "root"), video_root=str(tmp_path / "root"))
