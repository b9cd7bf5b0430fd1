import copy
import pickle

import pytest
import torch
from accelerate.utils import send_to_device
from transformers import TrainerCallback

from layerlock_hf import LayerLockViTForPretraining
from layerlock_hf.data import (
    Augmentation,
    BatchAugmentation,
    ClipTransform,
    PretrainingCollator,
    RandomMask,
    generator_for,
    repeat_last_frame,
    transforms,
)
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments


SIZE, NUM_FRAMES = 16, 4
SIZES = [(40, 60), (33, 17), (16, 16), (97, 53), (8, 8), (120, 30)]
OPTIONS = [{}, {"crop_scale": (0.3, 1.0)}, {"jitter_strength": 1.0}]


class Crops(torch.utils.data.Dataset):
    """Clips of noise of several sizes and lengths, as crops, or finished on the CPU."""

    def __init__(self, num_samples, is_finished, **options):
        self.num_samples, self.is_finished, self.options = num_samples, is_finished, options

    def __len__(self):
        return self.num_samples

    def __getitem__(self, position):
        generator = generator_for("clip", position)
        num_frames = NUM_FRAMES - (position % 3 == 2)
        height, width = SIZES[position % len(SIZES)]
        frames = torch.randint(256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)
        augmentation = ClipTransform(SIZE, **self.options).draw(height, width, generator)
        sample = {"position": position, "is_padded": num_frames < NUM_FRAMES}
        crop = augmentation.crop(frames)
        if self.is_finished:
            clip = repeat_last_frame(augmentation.finish(crop, SIZE), NUM_FRAMES)
            return sample | {"pixel_values_videos": clip}
        return sample | {"crop": crop, "augmentation": augmentation}


COLLATOR = PretrainingCollator((2, 4, 4), RandomMask(0.75))
AUGMENT = BatchAugmentation(SIZE, NUM_FRAMES)


def batch_of(is_finished, num_samples=12, **options):
    clips = Crops(num_samples, is_finished, **options)
    return COLLATOR([clips[position] for position in range(num_samples)])


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_a_batch_equals_its_clips(options):
    expected, batch = batch_of(True, **options), batch_of(False, **options)
    before = copy.deepcopy(batch)
    result = AUGMENT(batch)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        # The mean of a clip is summed in another order
        tolerance = 1 if "jitter_strength" in options and name == "pixel_values_videos" else 0
        assert result[name].dtype == value.dtype
        assert (result[name].int() - value.int()).abs().max() <= tolerance, name
    assert torch.equal(batch["crops"], before["crops"]), "the batch has changed"
    assert batch.keys() == before.keys()


def test_clips_without_a_change_of_colour_keep_theirs():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, SIZE, SIZE).expand(NUM_FRAMES, 3, -1, -1)
    color = transforms.ColorChange(brightness=9.0, contrast=1.0, saturation=1.0, hue=0.0)
    box = (0, 0, SIZE, SIZE)
    samples = [
        {"crop": frames, "augmentation": Augmentation(box, False, change), "position": 0, "is_padded": False}
        for change in (None, color)
    ]
    plain, brighter = AUGMENT(COLLATOR(samples))["pixel_values_videos"]
    assert torch.equal(plain, frames)
    assert torch.equal(brighter.int(), (frames.int() + 9).clamp(max=255))


@pytest.mark.parametrize("height, width", [*SIZES, (300, 200), (1, 1)])
def test_resizing_in_floating_point_is_off_by_one_at_most(height, width):
    """What a GPU does, on the CPU."""
    frames = torch.randint(256, (3, 3, height, width), dtype=torch.uint8)
    resized = transforms._resize_in_floating_point(frames, SIZE)
    assert resized.dtype == torch.uint8
    assert (resized.int() - transforms.resize(frames, SIZE).int()).abs().max() <= 1


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_a_batch_in_floating_point(monkeypatch, options):
    expected = batch_of(True, **options)["pixel_values_videos"].int()
    monkeypatch.setattr("layerlock_hf.data.batch_augmentation.resize", transforms._resize_in_floating_point)
    difference = AUGMENT(batch_of(False, **options))["pixel_values_videos"].int() - expected
    # A change of colour of strength 1 multiplies by no more than its 1.4 squared
    assert difference.abs().max() <= (3 if "jitter_strength" in options else 1)
    assert difference.float().mean().abs() < 0.05


def test_a_batch_of_crops_travels():
    """Between processes, and to the device as accelerate sends it."""
    batch = pickle.loads(pickle.dumps(batch_of(False, jitter_strength=1.0)))
    sent = send_to_device(batch, torch.device("cpu"))
    assert torch.equal(AUGMENT(sent)["pixel_values_videos"], AUGMENT(batch)["pixel_values_videos"])
    assert sent["crop_shapes"] == batch["crop_shapes"] and sent["augmentations"] == batch["augmentations"]


class Losses(TrainerCallback):
    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(
            {
                name: value
                for name, value in logs.items()
                if not name.startswith(("train", "peak", "clips_per", "data_wait"))
            }
        )


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_augments_on_the_device_is_the_same(tiny_config, tmp_path, num_workers):
    """With accumulation, measurements of features, and FLOPs, all of which look at a batch."""

    def run(is_finished, batch_transform):
        torch.manual_seed(0)
        arguments = LayerLockTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            dataloader_num_workers=num_workers,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_steps=1,
            diagnostics_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        losses = Losses()
        LayerLockTrainer(
            LayerLockViTForPretraining(copy.deepcopy(tiny_config)),
            arguments,
            train_dataset=Crops(12, is_finished),
            data_collator=COLLATOR,
            callbacks=[losses],
            batch_transform=batch_transform,
        ).train()
        return losses.rows

    rows = run(False, AUGMENT)
    assert len(rows) == 3 and rows[0]["total_flops"] > 0 and "feature_std" in rows[0]
    assert rows == run(True, None)
