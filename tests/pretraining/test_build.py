"""Runs of pretraining from Python: they are those of the program, and what must hold for every run does."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback, set_seed

import layerlock_hf
from layerlock_hf import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.cli import pretrain as program
from layerlock_hf.data import ClipTransform, MaskArguments, MultiBlockMasks, PretrainingClips, PretrainingCollator
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.data.sources import load_videos
from layerlock_hf.recipes.settings import flags_of
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments, StageArguments
from layerlock_hf.training.run_file import CheckpointRefused


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of four videos of 8 frames of 16 x 16 pixels."""
    return write_procedural_dataset(
        tmp_path_factory.mktemp("data"), 4, num_frames=8, image_size=16, progress=False
    ).with_name("videos")


@pytest.fixture(scope="module")
def settings(tiny_sizes):
    return {
        **tiny_sizes,
        "resize_factor": 1.15,
        "frame_stride": 1,
        "freeze_start": 2,
        "freeze_interval": 1,
        "layers_per_freeze": 2,
        "num_freezes": 1,
        "max_steps": 4,
        "global_batch_size": 4,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }


class Seen(TrainerCallback):
    """Adds up what enters the model, in order."""

    def __init__(self, model):
        self.clips, self.masks = [], []
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, model, args, kwargs):
        self.clips.append(kwargs["pixel_values_videos"].clone())
        self.masks.append(kwargs["context_ids"].clone())


def test_pretrain_is_the_program(videos, settings, tmp_path):
    trainer = layerlock_hf.pretrain("demo", videos, tmp_path / "python", **settings)
    assert trainer.state.global_step == 4 and not trainer.was_preempted
    given = {"config": "demo", "train_data": videos, "output_dir": tmp_path / "program", **settings}
    program.main(flags_of(given))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("python", "program")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("python", "program")]
    assert files[0] == files[1] >= {"stages.json", "metrics.jsonl", "bad_videos.jsonl"}
    assert AutoModel.from_pretrained(tmp_path / "python").config.num_frozen_layers == 2


def test_a_trainer_to_add_callbacks_to(videos, settings, tmp_path):
    steps = []

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    trainer = layerlock_hf.build_trainer("demo", str(videos), str(tmp_path), **settings)
    trainer.add_callback(Steps())
    trainer.train()
    assert isinstance(trainer, LayerLockTrainer) and steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_step": 3}, "--max_step is not a known setting, .*: did you mean --max_steps"),
        ({"max_steps": "many"}, "max_steps.*: invalid int value: 'many'"),
        ({"config": "demmo"}, "config: there is no recipe demmo: did you mean demo"),
        ({"train_data": "no/such/folder"}, "train_data: 'no/such/folder' does not exist"),
        ({"mask_past": 0}, "mask_past in recipes.* must be at least 1 time step, got 0"),
        ({"hidden_size": 33}, "hidden_size must be a multiple of num_attention_heads"),
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy must be sequential, got random"),
    ],
)
def test_mistakes_are_value_errors(videos, settings, tmp_path, changes, message):
    given = {"config": "demo", "train_data": videos, "output_dir": tmp_path / "out", **settings, **changes}
    with pytest.raises(ValueError, match=message):
        layerlock_hf.build_trainer(**given)


def hand_built(videos, settings, output_dir, masks=None, **changes) -> LayerLockTrainer:
    """What a user of the Trainer writes from the parts of the package."""
    recipe = {**layerlock_hf.load_recipe("demo"), **settings, **changes}
    config = LayerLockViTConfig.from_preset("tiny", **{name: recipe[name] for name in SIZES if name in recipe})
    args = LayerLockTrainingArguments(
        str(output_dir), **{name: recipe[name] for name in TRAINING if name in recipe}, report_to=["none"]
    )
    stages = StageArguments(
        **{name: recipe[name] for name in StageArguments.__dataclass_fields__ if name in recipe}
    ).build(config, None, args.max_steps)
    clips = PretrainingClips(
        load_videos(str(videos)),
        num_samples=16,
        num_frames=config.num_frames,
        frame_stride=recipe["frame_stride"],
        transform=ClipTransform(config.image_size, recipe["resize_factor"]),
        seed=args.seed,
    )
    mask_settings = {name: value for name, value in recipe.items() if name.startswith("mask")}
    collator = PretrainingCollator(config.grid_size, masks or MaskArguments(**mask_settings).build(), args.seed)
    set_seed(args.seed)
    return LayerLockTrainer(LayerLockViTForPretraining(config), args, stages, clips, collator)


SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size"),
    *("num_frames", "num_decoder_layers", "initializer_range", "pixel_mean", "pixel_std"),
)
TRAINING = (
    *("max_steps", "global_batch_size", "per_device_train_batch_size", "save_strategy", "use_cpu", "disable_tqdm"),
    *("dataloader_num_workers", "learning_rate", "warmup_steps", "switch_warmup_steps", "max_grad_norm", "adam_beta2"),
    *("weight_decay", "seed", "resume_from_checkpoint", "save_steps"),
)


def test_a_trainer_built_by_hand_sees_the_same_clips_in_the_same_order(videos, settings, tmp_path):
    trainers = [
        layerlock_hf.build_trainer("demo", videos, tmp_path / "recipe", **settings),
        hand_built(videos, settings, tmp_path / "hand"),
    ]
    seen = []
    for trainer in trainers:
        seen.append(Seen(trainer.model))
        trainer.train()
    assert len(seen[0].clips) == len(seen[1].clips) >= 4
    for ours, theirs in zip(seen[0].clips + seen[0].masks, seen[1].clips + seen[1].masks, strict=True):
        assert torch.equal(ours, theirs)
    assert len({clip.sum().item() for clips in seen[0].clips for clip in clips}) > 4  # no clip over and over


def test_a_trainer_built_by_hand_refuses_what_the_program_does(videos, settings, tmp_path):
    with pytest.raises(ValueError, match="mask_group_size must be a multiple of per_device_train_batch_size=4, got 6"):
        hand_built(videos, settings, tmp_path, masks=MultiBlockMasks(group_size=6))
    saving = {"save_strategy": "steps", "save_steps": 2}
    hand_built(videos, settings, tmp_path, **saving).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointRefused, match="already holds checkpoints: resume from the newest"):
        hand_built(videos, settings, tmp_path, **saving).train()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
