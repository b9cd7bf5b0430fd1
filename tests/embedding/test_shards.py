"""Shards as files: that both formats keep the same, and give it back."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
from PIL import Image
from safetensors.numpy import load_file

import layerlock_hf
from layerlock_hf.cli import search
from layerlock_hf.embedding import read_shards
from layerlock_hf.embedding.shards import FORMATS, columns_of, read_pieces


SETTINGS = {"window": "8f", "depths": [3, 6], "pool": "grid", "windows_per_shard": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def made(embed_in_each_format):
    """A folder of each format, of the same grids."""
    return embed_in_each_format(**SETTINGS)


def test_safetensors_by_hand(made):
    """With nothing of this package: a tensor for each depth, of the grid's shape, and names in the header."""
    manifest = json.loads((made["safetensors"] / "manifest.json").read_text())
    assert len(manifest["shards"]) > 2
    for shard in manifest["shards"]:
        path = made["safetensors"] / shard["file"]
        arrays = load_file(path)
        with safetensors.safe_open(path, "numpy") as file:
            names = json.loads(file.metadata()["videos"])
        assert arrays["depth_3"].shape == arrays["depth_6"].shape == (shard["rows"], 4, 4, 32)
        assert arrays["depth_6"].dtype == np.float32 and path.stat().st_size == shard["bytes"]
        theirs = pq.read_table(made["parquet"] / shard["file"].replace("safetensors", "parquet")).to_pydict()
        assert [names[place] for place in arrays["video"]] == theirs["video"]
        for name in ("window", "step", "start_seconds", "end_seconds", "first_frame", "num_frames"):
            assert arrays[name].tolist() == theirs[name]
        np.testing.assert_array_equal(arrays["depth_6"].reshape(shard["rows"], -1), theirs["depth_6"])


def test_read_shards(made):
    parts = {kind: list(read_shards(folder)) for kind, folder in made.items()}
    for ours, theirs in zip(*parts.values(), strict=True):
        assert ours["depth_3"].shape == (len(ours["video"]), 4, 4, 32)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    (*_, last) = read_shards(str(made["safetensors"]), columns=["video", "step"])
    assert list(last) == ["video", "step"]
    with pytest.raises(ValueError, match="columns must be among video, .*, depth_3, depth_6, got depth_9"):
        next(read_shards(made["parquet"], columns=["depth_9"]))


def test_search_finds_the_same(made, videos):
    found = [layerlock_hf.search(folder, str(videos / "v3.mp4"), top=6) for folder in made.values()]
    assert found[0] == found[1] and found[0].hits[0].video == str(videos / "v3.mp4")


@pytest.mark.parametrize("kind", FORMATS)
def test_files_are_determined_by_their_columns_and_read_in_pieces(kind, tmp_path):
    about = {"start_seconds": float("nan"), "end_seconds": 1.5, "first_frame": 3, "num_frames": 2}
    names = ["b.mp4", "b.mp4", "a é.mp4", "b.mp4", "c.mp4"]
    rows = [
        {"video": name, "window": 2**40, "step": row, **about, "depth_2": np.full(6, row, np.float32)}
        for row, name in enumerate(names)
    ]
    columns = columns_of(rows, {"depth_2": [2, 3]})
    data = FORMATS[kind].encode(columns)
    assert data == FORMATS[kind].encode(columns_of(rows, {"depth_2": [2, 3]}))
    (tmp_path / "shard").write_bytes(data)
    pieces = list(read_pieces(tmp_path / "shard", kind, list(columns), 2))
    assert [len(piece["video"]) for piece in pieces] == [2, 2, 1]
    for name, values in columns.items():
        read = np.concatenate([piece[name] for piece in pieces]).reshape(np.shape(values))
        np.testing.assert_array_equal(read, values)
        assert name == "video" or read.dtype == values.dtype


@pytest.mark.parametrize("kind", FORMATS)
def test_frames_without_a_rate_have_no_times(kind, model, tmp_path, capsys):
    """NaN, which parquet and JSON call null."""
    folder = tmp_path / "frames" / "clip"
    folder.mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (20, 16), (8 * index,) * 3).save(folder / f"{index}.png")
    layerlock_hf.embed(str(tmp_path / "frames"), tmp_path / "out", model, window="4f", format=kind)
    (part,) = read_shards(tmp_path / "out")
    assert np.isnan(part["start_seconds"]).all() and part["first_frame"].tolist() == [0, 4]
    for path in (tmp_path / "out" / "data").glob("*.parquet"):
        assert pq.read_table(path)["end_seconds"].null_count == 2
    search.main([str(tmp_path / "out"), "--query", str(folder), "--json", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [hit["start_seconds"] for hit in found["hits"]] == [None, None]
