import itertools
import json
import shutil

import pytest
import torch

from layerlock_hf.data import BadData, BadVideos
from layerlock_hf.evaluation.features import EncodedFeatures, FeatureStore, FixedClips, StoredFeatures, pooled_features
from layerlock_hf.evaluation.tasks import Classification
from layerlock_hf.models import LayerLockViTModel


DEPTHS = [1, 3]
IDENTITY = {"encoder": "mine"}


@pytest.fixture
def encoder(tiny_config):
    return LayerLockViTModel(tiny_config).eval().requires_grad_(False)


@pytest.fixture
def task(tiny_config):
    return Classification(tiny_config, 3, num_test_clips=2)


class Items(torch.utils.data.Dataset):
    """Two clips each; the fourth cannot be read. `num_reads` counts."""

    def __init__(self, num_items=6, num_clips=2, bad=(3,)):
        self.num_items, self.num_clips, self.bad, self.num_reads = num_items, num_clips, bad, 0

    def __len__(self):
        return self.num_items

    def __getitem__(self, index):
        self.num_reads += 1
        if index in self.bad:
            return {"index": index, "name": f"video {index}", "error": "torn", "kind": "damaged"}
        generator = torch.Generator().manual_seed(index)
        clips = torch.randint(0, 256, (self.num_clips, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
        return {"pixel_values_videos": clips, "labels": index % 3, "index": index}


def test_stored_features_are_those_of_the_encoder(encoder, task, tmp_path):
    items = Items()
    store = FeatureStore(tmp_path, items, DEPTHS, IDENTITY)
    store.fill(EncodedFeatures(encoder), task.collate_test, batch_size=4)
    live, stored = (task.collate_test([source[index] for index in range(6)]) for source in (items, store))
    assert stored["failed"] == live["failed"] == [items[3]]
    for name in ("labels", "index"):
        assert torch.equal(stored[name], live[name])
    found = StoredFeatures(torch.device("cpu"))(stored, DEPTHS)
    for values, expected in zip(found, EncodedFeatures(encoder)(live, DEPTHS), strict=True):
        assert values.shape == expected.shape == (10, 2, 16, 32) and values.dtype == torch.float32
        torch.testing.assert_close(values, expected, rtol=2**-8, atol=1e-6)
    assert stored["features"][1].dtype == torch.bfloat16


def test_filling_goes_on_where_it_was_stopped(encoder, task, tmp_path):
    """And tries again what could not be read."""
    read = EncodedFeatures(encoder)
    calls = itertools.count()

    def stopped(batch, depths):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return read(batch, depths)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path, Items(), DEPTHS, IDENTITY).fill(stopped, task.collate_test, 1)
    (tmp_path / "00000" / "00000002.safetensors.0123abcd.new").write_bytes(b"torn")
    items = Items(bad=())
    store = FeatureStore(tmp_path, items, DEPTHS, IDENTITY)
    store.fill(read, task.collate_test, 1)
    assert items.num_reads == 4 and store.failed == {}
    whole = FeatureStore(tmp_path / "whole", Items(bad=()), DEPTHS, IDENTITY)
    whole.fill(read, task.collate_test, 1)
    for index in range(6):
        assert all(torch.equal(store[index]["features"][depth], whole[index]["features"][depth]) for depth in DEPTHS)


@pytest.mark.parametrize(
    ("items", "depths", "identity", "message"),
    [
        (Items(), DEPTHS, {"encoder": "yours"}, r"of another run \(encoder differs\)"),
        (Items(), [1, 2], IDENTITY, r"after \[1, 3\] layers, but none after \[2\]"),
        (Items(5), DEPTHS, IDENTITY, r"of another run \(num_items differs\)"),
    ],
)
def test_features_of_something_else_are_refused(encoder, task, tmp_path, items, depths, identity, message):
    FeatureStore(tmp_path, Items(), DEPTHS, IDENTITY).fill(EncodedFeatures(encoder), task.collate_test, 4)
    before = json.loads((tmp_path / "features.json").read_text())
    with pytest.raises(ValueError, match=message):
        FeatureStore(tmp_path, items, depths, identity)
    assert json.loads((tmp_path / "features.json").read_text()) == before


def test_a_store_of_more_depths_will_do(encoder, task, tmp_path):
    """And what is missing is made at all of them."""
    FeatureStore(tmp_path, Items(), DEPTHS, IDENTITY).fill(EncodedFeatures(encoder), task.collate_test, 4)
    store = FeatureStore(tmp_path, Items(bad=()), [3], IDENTITY)
    store.fill(EncodedFeatures(encoder), task.collate_test, 4)
    assert list(store[0]["features"]) == [3]
    both = FeatureStore(tmp_path, Items(bad=()), DEPTHS, IDENTITY)
    assert list(both[3]["features"]) == DEPTHS
    assert torch.equal(both[0]["features"][3], store[0]["features"][3])


@pytest.mark.parametrize("num_bytes", [0, 5, 2000])
def test_a_file_that_is_not_whole_is_made_again(encoder, task, tmp_path, num_bytes):
    FeatureStore(tmp_path, Items(), DEPTHS, IDENTITY).fill(EncodedFeatures(encoder), task.collate_test, 4)
    path = tmp_path / "00000" / "00000002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:num_bytes])
    items = Items(bad=())
    FeatureStore(tmp_path, items, DEPTHS, IDENTITY).fill(EncodedFeatures(encoder), task.collate_test, 4)
    assert path.read_bytes() == whole and items.num_reads == 2  # with the one that could not be read before


def test_a_disk_that_is_too_small_is_told_at_once(encoder, task, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(ValueError, match="features of 6 items take about 0.0 GB, but only 0.0 GB are free"):
        FeatureStore(tmp_path, Items(), DEPTHS, IDENTITY).fill(EncodedFeatures(encoder), task.collate_test, 1)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_damaged_store_is_named(tmp_path):
    (tmp_path / "features.json").write_text('{"depths')
    with pytest.raises(ValueError, match="features.json is damaged: delete"):
        FeatureStore(tmp_path, Items(), DEPTHS, IDENTITY)


def test_fixed_clips_show_every_item_once_an_epoch():
    clips = FixedClips(Items(bad=(), num_clips=1), 18, 0, BadVideos(None, 6))
    labels = [int(clips[position]["labels"]) for position in range(18)]
    assert all(sorted(labels[start : start + 6]) == [0, 0, 1, 1, 2, 2] for start in (0, 6, 12))
    assert len({tuple(labels[start : start + 6]) for start in (0, 6, 12)}) > 1
    assert clips[0]["pixel_values_videos"].shape == (4, 3, 16, 16)
    other = FixedClips(Items(bad=(), num_clips=1), 18, 1, BadVideos(None, 6))
    assert labels != [int(other[position]["labels"]) for position in range(18)]


def test_fixed_clips_replace_what_cannot_be_read_and_report_it(tmp_path):
    path = tmp_path / "bad.jsonl"
    clips = FixedClips(Items(bad=(1, 3), num_clips=1), 24, 0, BadVideos(str(path), 6))
    assert len([clips[position] for position in range(24)]) == 24
    reported = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(entry["path"] for entry in reported) == ["video 1", "video 3"]
    assert reported[0]["reason"] == "torn" and reported[0]["kind"] == "damaged" and not reported[0]["used"]


def test_fixed_clips_end_a_run_that_has_too_few():
    with pytest.raises(BadData, match="more than max_bad_fraction=0.25 allows"):
        clips = FixedClips(Items(bad=(1, 3), num_clips=1), 24, 0, BadVideos(None, 6, 0.25))
        [clips[position] for position in range(24)]
    clips = FixedClips(Items(bad=range(6), num_clips=1), 24, 0, BadVideos(None, 6, 1.0))
    with pytest.raises(BadData, match="10 videos in a row cannot be read, the last .video [0-5]. because of: torn"):
        clips[0]


def test_pooled_features(encoder, tiny_config, tmp_path):
    """The mean over the tokens of all clips; the same, to the precision of the files, from a store."""
    items = Items(5, bad=(1,))
    task = Classification(tiny_config, 3, num_test_clips=2)
    features, labels = pooled_features(items, EncodedFeatures(encoder), [2, 6], task.collate_test, batch_size=2)
    assert labels.tolist() == [0, 2, 0, 1]
    for depth, means in zip([2, 6], features, strict=True):
        clips = torch.cat([items[index]["pixel_values_videos"] for index in (0, 2, 3, 4)])
        (tokens,) = encoder.tap(clips.float() / 255, [depth])
        torch.testing.assert_close(means, tokens.unflatten(0, (4, 2)).mean(dim=(1, 2)))
    store = FeatureStore(tmp_path, items, [2, 6], {})
    store.fill(EncodedFeatures(encoder), task.collate_test, 2)
    read = StoredFeatures(torch.device("cpu"))
    stored, stored_labels = pooled_features(store, read, [2, 6], task.collate_test, batch_size=2)
    assert torch.equal(stored_labels, labels)
    for mine, others in zip(stored, features, strict=True):
        torch.testing.assert_close(mine, others, rtol=1e-2, atol=1e-2)


def test_nothing_to_pool_is_an_error(encoder, tiny_config):
    with pytest.raises(ValueError, match="none of 1 items can be read, the first because of: torn"):
        task = Classification(tiny_config, 3)
        pooled_features([Items(bad=(0,))[0]], EncodedFeatures(encoder), [2], task.collate_test, 2)
