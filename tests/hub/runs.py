"""Short runs of pretraining, to be exported and pushed."""

from pathlib import Path

import yaml

import layerlock_hf
from layerlock_hf.data.procedural import write_procedural_dataset


def write_recipe(folder: Path, tiny_sizes: dict, **changes) -> Path:
    """Three stages, two steps each, on four videos of 8 frames of 16 x 16 pixels."""
    videos = write_procedural_dataset(folder / "data", 4, num_frames=8, image_size=16, progress=False)
    settings = {
        "preset": "tiny",
        **tiny_sizes,
        "frame_stride": 1,
        "mask_ratio": 0.75,
        "freeze_start": 2,
        "freeze_interval": 2,
        "layers_per_freeze": 1,
        "num_freezes": 2,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "global_batch_size": 4,
        "learning_rate": 1e-2,
        "switch_warmup_steps": 0,
        "logging_steps": 1,
        "diagnostics_steps": 0,
        "save_strategy": "no",
        "save_stages": True,
        "train_data": str(videos.with_name("videos")),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
    }
    settings = {name: value for name, value in {**settings, **changes}.items() if value is not None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def pretrain(recipe: Path, output: Path, **settings) -> Path:
    """The folder of a run with this recipe."""
    train_data = yaml.safe_load(recipe.read_text())["train_data"]
    layerlock_hf.pretrain(str(recipe), train_data, output, **settings)
    return output
