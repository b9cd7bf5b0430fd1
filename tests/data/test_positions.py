"""What a position of the run holds is the same however the work is divided, and resuming decodes nothing twice."""

import hashlib

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from layerlock_hf import LayerLockViTForPretraining
from layerlock_hf.data import (
    ClipTransform,
    MultiBlockMasks,
    PretrainingClips,
    PretrainingCollator,
    RandomMask,
    load_videos,
)
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments


CLIPS_PER_STEP, STEPS = 8, 2
MASKS = {
    "random": RandomMask(0.75),
    "multiblock": MultiBlockMasks(((2, 0.15), (1, 0.5)), group_size=CLIPS_PER_STEP),
}


# Groups of four span the batches of four processes
ORDERS = {
    "plain": {},
    "mixture of groups": {"clips_per_video": 4, "source_weights": (0.75, 0.25)},
}


class Collator(PretrainingCollator):
    """Also tells the positions."""

    def __call__(self, samples):
        return super().__call__(samples) | {"positions": [sample["position"] for sample in samples]}


def steps_of(videos, masks, order, world_size, num_workers):
    """For every step the clips of all processes by position, each with its masks, in bytes."""
    steps = [{} for _ in range(STEPS)]
    for rank in range(world_size):
        transform = ClipTransform(32, crop_scale=(0.3, 1.0))
        clips = PretrainingClips(videos, CLIPS_PER_STEP * STEPS, num_frames=4, transform=transform, **order)
        batches = torch.utils.data.BatchSampler(range(len(clips)), CLIPS_PER_STEP // world_size, drop_last=True)
        loader = torch.utils.data.DataLoader(
            clips,
            batch_sampler=BatchSamplerShard(batches, world_size, rank),
            num_workers=num_workers,
            collate_fn=Collator((2, 8, 8), masks),
        )
        for step, batch in zip(steps, loader, strict=True):
            for row, position in enumerate(batch.pop("positions")):
                parts = [batch["pixel_values_videos"]]
                for ids in (batch["context_ids"], batch["target_ids"]):
                    parts += ids if isinstance(ids, list) else [ids]
                step[position] = [part[row].numpy().tobytes() for part in parts]
    return steps


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than there are cores
@pytest.mark.parametrize(
    "kind, order",
    [
        ("random", "plain"),
        ("multiblock", "plain"),
        pytest.param("random", "mixture of groups", marks=pytest.mark.slow),
    ],
)
def test_processes_and_workers_change_no_position(folder, kind, order):
    videos = load_videos([str(folder), str(folder / "sub")])
    expected = steps_of(videos, MASKS[kind], ORDERS[order], world_size=1, num_workers=0)
    assert [sorted(step) for step in expected] == [list(range(n * 8, n * 8 + 8)) for n in range(STEPS)]
    for world_size, num_workers in ((1, 1), (1, 4), (2, 2), (4, 0)):
        assert steps_of(videos, MASKS[kind], ORDERS[order], world_size, num_workers) == expected, (
            world_size,
            num_workers,
        )


class Counted(PretrainingClips):
    """Writes the position and a digest of every clip that it makes to a file, from whichever process."""

    def __init__(self, *arguments, log, **options):
        super().__init__(*arguments, **options)
        self.log = log

    def _make_group(self, index, source, first, positions, attempt):
        group = super()._make_group(index, source, first, positions, attempt)
        with open(self.log, "a") as file:
            for position, frames in zip(positions, group.frames, strict=True):
                file.write(f"{position} {hashlib.sha1(frames).hexdigest()}\n")
        return group


@pytest.mark.parametrize(
    "num_workers, accumulation, order",
    [
        (0, 1, "plain"),
        pytest.param(0, 1, "mixture of groups", marks=pytest.mark.slow),
        pytest.param(2, 2, "mixture of groups", marks=pytest.mark.slow),
    ],
)
def test_resuming_decodes_what_is_left_alone(folder, tiny_config, tmp_path, num_workers, accumulation, order):
    def decoded(name, **resume):
        arguments = LayerLockTrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=6,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=num_workers,
            train_sampling_strategy="sequential",
            save_strategy="steps",
            save_steps=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        videos = load_videos([str(folder), str(folder / "sub")])
        options = {"num_frames": 4, "transform": ClipTransform(16), **ORDERS[order]}
        clips = Counted(videos, 24, log=tmp_path / name, **options)
        torch.manual_seed(0)
        model = LayerLockViTForPretraining(tiny_config)
        LayerLockTrainer(model, arguments, None, clips, PretrainingCollator((2, 4, 4), RandomMask(0.75))).train(
            **resume
        )
        lines = map(str.split, (tmp_path / name).read_text().splitlines())
        return sorted((int(position), digest) for position, digest in lines)

    whole = decoded("whole")
    assert [position for position, _ in whole] == list(range(24))
    assert decoded("resumed", resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4")) == whole[16:]
