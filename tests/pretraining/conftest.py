"""Short runs of `layerlock pretrain` in this process."""

import pytest
import yaml

from layerlock_hf.cli import pretrain as program
from layerlock_hf.data.procedural import write_procedural_dataset


@pytest.fixture(scope="module")
def pretrain():
    """`layerlock pretrain`."""
    return program.main


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of four videos of 8 frames of 16 x 16 pixels."""
    return write_procedural_dataset(
        tmp_path_factory.mktemp("data"), 4, num_frames=8, image_size=16, progress=False
    ).with_name("videos")


@pytest.fixture(scope="module")
def settings(tiny_sizes, videos):
    """A recipe of two stages, two steps each."""
    return {
        "preset": "tiny",
        **tiny_sizes,
        "frame_stride": 1,
        "mask_ratio": 0.75,
        "freeze_start": 2,
        "freeze_interval": 1,
        "layers_per_freeze": 2,
        "num_freezes": 1,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "switch_warmup_steps": 1,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "train_data": str(videos),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
    }


@pytest.fixture(scope="module")
def run(pretrain, settings, tmp_path_factory):
    """Run the recipe with some settings changed, or left out if None, into a folder."""

    def run(folder, *flags, **changes):
        recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        changed = {name: value for name, value in {**settings, **changes}.items() if value is not None}
        recipe.write_text(yaml.safe_dump(changed))
        pretrain(["--config", str(recipe), "--output_dir", str(folder), *map(str, flags)])

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The folder of a finished run. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder
