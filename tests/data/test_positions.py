"""What a position of the run holds is the same however the work is divided, and resuming decodes nothing twice."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from layerlock_hf import LayerLockViTForPretraining
from layerlock_hf.data import MultiBlockMasks, PretrainingClips, PretrainingCollator, RandomMask, load_videos
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments


CLIPS_PER_STEP, STEPS = 8, 2
MASKS = {
    "random": RandomMask(0.75),
    "multiblock": MultiBlockMasks(((2, 0.15), (1, 0.5)), group_size=CLIPS_PER_STEP),
}


class Collator(PretrainingCollator):
    """Also tells the positions."""

    def __call__(self, samples):
        return super().__call__(samples) | {"positions": [sample["position"] for sample in samples]}


def steps_of(videos, masks, world_size, num_workers):
    """For every step the clips of all processes by position, each with its masks, in bytes."""
    steps = [{} for _ in range(STEPS)]
    for rank in range(world_size):
        clips = PretrainingClips(videos, CLIPS_PER_STEP * STEPS, num_frames=4, image_size=32, crop_scale=(0.3, 1.0))
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
@pytest.mark.parametrize("kind", MASKS)
def test_processes_and_workers_change_no_position(folder, kind):
    videos = load_videos(str(folder))
    expected = steps_of(videos, MASKS[kind], world_size=1, num_workers=0)
    assert [sorted(step) for step in expected] == [list(range(n * 8, n * 8 + 8)) for n in range(STEPS)]
    for world_size, num_workers in ((1, 1), (1, 4), (2, 2), (4, 0)):
        assert steps_of(videos, MASKS[kind], world_size, num_workers) == expected, (world_size, num_workers)


class Counted(PretrainingClips):
    """Writes the position of every clip that it decodes to a file, from whichever process."""

    def __init__(self, *arguments, log, **options):
        super().__init__(*arguments, **options)
        self.log = log

    def _make_clip(self, index, position, attempt):
        with open(self.log, "a") as file:
            file.write(f"{position}\n")
        return super()._make_clip(index, position, attempt)


@pytest.mark.parametrize("num_workers, accumulation", [(0, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_resuming_decodes_what_is_left_alone(folder, tiny_config, tmp_path, num_workers, accumulation):
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
        clips = Counted(load_videos(str(folder)), 24, num_frames=4, image_size=16, log=tmp_path / name)
        torch.manual_seed(0)
        model = LayerLockViTForPretraining(tiny_config)
        LayerLockTrainer(model, arguments, None, clips, PretrainingCollator((2, 4, 4), RandomMask(0.75))).train(
            **resume
        )
        return sorted(map(int, (tmp_path / name).read_text().split()))

    assert decoded("whole") == list(range(24))
    assert decoded("resumed", resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4")) == list(range(16, 24))
