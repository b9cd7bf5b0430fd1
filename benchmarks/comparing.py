"""What benchmarks of several runs share: recipes that compare, and records and videos, so that they can be stopped and
continued."""

from pathlib import Path

from layerlock_hf import LayerLockViTConfig
from layerlock_hf.models.configuration_layerlock import architecture_fields
from layerlock_hf.pretraining.demo_data import write_data
from layerlock_hf.recipes import find_recipe, load_recipe
from layerlock_hf.utils.records import read_record, write_record


REFERENCE = "demo"  # the recipe that gives steps and sizes

# What must agree for a comparison
SAME_MODEL = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SAME_CLIPS = ("image_size", "num_frames", "patch_size", "tubelet_size")
SAME_SETTINGS = ("global_batch_size", "frame_stride", "clips_per_video")


def recipe_path(name: str) -> Path:
    return find_recipe(name)


def model_config(recipe: dict) -> LayerLockViTConfig:
    fields = {name: recipe[name] for name in architecture_fields() if name in recipe}
    return LayerLockViTConfig.from_preset(recipe["preset"], **fields)


def load_checked(name: str) -> dict:
    """A recipe whose encoder, clips and batches are those of the reference.

    Raises:
        ValueError: naming the setting that differs.
    """
    recipe, reference = load_recipe(recipe_path(name)), load_recipe(recipe_path(REFERENCE))
    ours, theirs = model_config(recipe), model_config(reference)
    pairs = {setting: (getattr(ours, setting), getattr(theirs, setting)) for setting in SAME_MODEL + SAME_CLIPS}
    pairs |= {setting: (recipe.get(setting), reference.get(setting)) for setting in SAME_SETTINGS}
    for setting, (value, expected) in pairs.items():
        if value != expected:
            raise ValueError(f"{setting} is {value} in {name}.yaml, but {expected} in {REFERENCE}.yaml")
    return recipe


def write_data_once(output: Path, num_videos: int) -> Path:
    """The folder of the videos of all runs in `output`, which an earlier call may have written.

    Raises:
        ValueError: if that wrote another number of them.
    """
    settings = {"num_videos": num_videos}
    output.mkdir(parents=True, exist_ok=True)
    if read_record(output / "data.json", settings) is None:
        write_data(output / "data", num_videos)
        write_record(output / "data.json", {"settings": settings})
    return output / "data"
