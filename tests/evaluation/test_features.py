import pytest
import torch
from torch.utils.data import Dataset

from layerlock_hf.evaluation.features import EncodedFeatures, FeatureStore, StoredFeatures, pooled_features
from layerlock_hf.evaluation.tasks import Classification
from layerlock_hf.models import LayerLockViTModel


class Clips(Dataset):
    """Five items of two clips each, of which the second cannot be read."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == 1:
            return {"index": index, "error": "torn"}
        generator = torch.Generator().manual_seed(index)
        clips = torch.randint(0, 256, (2, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
        return {"pixel_values_videos": clips, "labels": index % 3, "index": index}


@pytest.fixture
def encoder(tiny_config):
    return LayerLockViTModel(tiny_config).eval().requires_grad_(False)


def test_pooled_features(encoder, tiny_config, tmp_path):
    """The mean over the tokens of all clips; the same, to the precision of the files, from a store."""
    items = Clips()
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
    with pytest.raises(ValueError, match="none of 1 items can be read; the first says: torn"):
        task = Classification(tiny_config, 3)
        pooled_features([Clips()[1] | {"index": 0}], EncodedFeatures(encoder), [2], task.collate_test, 2)
