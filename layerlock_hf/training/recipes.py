"""Recipes: flat YAML files that name the rows of the papers' tables, and the list of stages they stand for."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.objectives import Stage
from .stages import FreezeSchedule, locked, mae


@dataclass
class StageArguments:
    """What is predicted, and when which layers freeze. Without `freeze_start` the run is a plain MAE."""

    freeze_start: int | None = field(default=None, metadata={"help": "Step of the first freezing."})
    freeze_interval: int | None = field(default=None, metadata={"help": "Steps between freezings."})
    layers_per_freeze: int | None = field(default=None, metadata={"help": "Layers frozen at each (default 1)."})
    num_freezes: int | None = field(default=None, metadata={"help": "Number of freezings."})
    max_frozen: int | None = field(default=None, metadata={"help": "Most layers ever frozen."})
    target_layers: list[int] | None = field(
        default=None, metadata={"help": "Layer predicted after each freezing (default: the last frozen one)."}
    )
    predict_latents: bool = field(default=True, metadata={"help": "False: freeze, but go on predicting pixels."})
    latent_patch_fraction: float = field(
        default=1.0, metadata={"help": "Share of the tokens whose latents are computed and predicted."}
    )
    pixel_patch_fraction: float = field(
        default=1.0, metadata={"help": "Share of the tokens whose pixels are predicted."}
    )
    normalize_pixels: bool = field(default=False, metadata={"help": "Normalise the pixels of each token (VideoMAE)."})

    def build(self, config: LayerLockViTConfig) -> list[Stage]:
        """The stages of a run on a model of this configuration.

        Raises:
            ValueError: naming the field, if the settings contradict each other or the model.
        """
        for name in ("latent_patch_fraction", "pixel_patch_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        base = mae(config.num_hidden_layers, self.normalize_pixels, self.pixel_patch_fraction)
        schedule_fields = ("freeze_interval", "layers_per_freeze", "num_freezes", "max_frozen", "target_layers")
        if self.freeze_start is None:
            for name in schedule_fields:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is set but freeze_start is not: without it nothing is ever frozen")
            return base
        if self.freeze_interval is None and self.num_freezes != 1:
            raise ValueError("freeze_start is set but freeze_interval is not")
        schedule = FreezeSchedule(
            start=self.freeze_start,
            interval=1 if self.freeze_interval is None else self.freeze_interval,
            layers_per_freeze=1 if self.layers_per_freeze is None else self.layers_per_freeze,
            num_freezes=self.num_freezes,
            max_frozen=self.max_frozen,
            target_layers=None if self.target_layers is None else tuple(self.target_layers),
        )
        for step, num_frozen in schedule.freezings():
            if num_frozen > config.num_hidden_layers:
                raise ValueError(
                    f"the freezing at step {step} brings {num_frozen} frozen layers, but the ViT has "
                    f"{config.num_hidden_layers}: lower num_freezes or layers_per_freeze, or set max_frozen"
                )
        return locked(base, schedule, self.predict_latents, self.latent_patch_fraction)


def load_recipe(path: str | Path) -> dict:
    """The settings of a recipe file.

    Raises:
        ValueError: if the file does not exist or is not a flat table of settings.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config: there is no recipe {path}")
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"config: {path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"config: {path} must hold settings, one `name: value` a line")
    return settings
