import torch

from layerlock_hf.data import Augmentation, PretrainingCollator, RandomMask


COLLATOR = PretrainingCollator((2, 4, 4), RandomMask(0.75), seed=3)


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def test_clips_are_stacked():
    clips = [noise(4, 3, 16, 16) for _ in range(3)]
    samples = [
        {"pixel_values_videos": clip, "position": position, "is_padded": position == 1}
        for position, clip in enumerate(clips)
    ]
    batch = COLLATOR(samples)
    assert list(batch) == ["pixel_values_videos", "context_ids", "target_ids", "num_padded"]
    assert torch.equal(batch["pixel_values_videos"], torch.stack(clips))
    assert batch["context_ids"].shape == (3, 8) and batch["target_ids"].shape == (3, 32)
    assert batch["num_padded"] == 1


def test_crops_of_any_size_and_length_are_one_tensor():
    crops = [noise(4, 3, 5, 7), noise(3, 3, 2, 2), noise(4, 3, 9, 1).flip(0)[:, :, 2:]]
    drawn = [Augmentation((0, 0, *crop.shape[2:]), False, None) for crop in crops]
    samples = [
        {"crop": crop, "augmentation": augmentation, "position": position, "is_padded": len(crop) < 4}
        for position, (crop, augmentation) in enumerate(zip(crops, drawn, strict=True))
    ]
    batch = COLLATOR(samples)
    assert "pixel_values_videos" not in batch
    assert batch["crops"].dtype == torch.uint8
    assert torch.equal(batch["crops"], torch.cat([crop.flatten() for crop in crops]))
    assert batch["crop_shapes"] == [tuple(crop.shape) for crop in crops]
    assert batch["augmentations"] == drawn
    assert batch["num_padded"] == 1
    whole = [{**sample, "pixel_values_videos": noise(4, 3, 16, 16)} for sample in samples]
    for sample in whole:
        del sample["crop"]
    assert torch.equal(batch["context_ids"], COLLATOR(whole)["context_ids"])
