"""Methods: from the settings of a recipe to a list of stages."""

from dataclasses import dataclass, field, fields

from ..models.configuration_layerlock import LayerLockViTConfig
from ..models.objectives import Stage
from .freezing import AutoFreezing
from .schedules import whole_steps
from .settling import MAX_DRIFT, MAX_GROWTH, SettlingRule
from .stages import (
    FreezeSchedule,
    blockwise,
    blockwise_in_sequence,
    locked,
    mae,
    mae_and_latents,
    teacher_latents,
)


# Arguments of `FreezeSchedule` and of `locked`, and the settings that give them
SCHEDULE_SETTINGS = {
    "start": "freeze_start",
    "interval": "freeze_interval",
    "layers_per_freeze": "layers_per_freeze",
    "num_freezes": "num_freezes",
    "max_frozen": "max_frozen",
    "target_layers": "target_layers",
}
LOCKED_SETTINGS = {
    "predict_latents": "predict_latents",
    "patch_fraction": "latent_patch_fraction",
    "keep_targets": "keep_targets",
}
RULE_SETTINGS = {"max_drift": "settled_drift", "max_growth": "settled_growth"}
LOCKING_SETTINGS = {"schedule", *SCHEDULE_SETTINGS.values(), *LOCKED_SETTINGS.values(), *RULE_SETTINGS.values()}
FIXED, AUTO = "fixed", "auto"
# Arguments of `AutoFreezing.of_run`
LIMIT_SETTINGS = {
    "first_step": "freeze_start",
    "min_interval": "freeze_interval",
    **{name: name for name in ("layers_per_freeze", "num_freezes", "max_frozen")},
}
STEP_SETTINGS = {"freeze_start", "freeze_interval", "steps_per_block", "latent_weight_ramp_steps"}


@dataclass
class StageArguments:
    """What is predicted, and which layers freeze when. With neither `freeze_start` nor `schedule="auto"`, nothing is
    ever frozen.

    Settings measured in steps may also be a share of the run: a number below 1.
    """

    method: str = field(default="mae", metadata={"help": "Pretraining method: what is predicted before any freezing."})
    pixel_patch_fraction: float | None = field(
        default=None, metadata={"help": "Share of the tokens whose pixels are predicted (default 1)."}
    )
    normalize_pixels: bool | None = field(
        default=None, metadata={"help": "Normalise the pixels of each token (VideoMAE)."}
    )
    pixel_loss: str | None = field(default=None, metadata={"help": "l2 (default) or l1."})
    target_layer: int | None = field(
        default=None, metadata={"help": "Layer of the teacher that is predicted (default: its last)."}
    )
    latent_weight: float | None = field(
        default=None, metadata={"help": "Weight of the latents of layers that are not frozen (default 1)."}
    )
    latent_weight_ramp_steps: float | None = field(
        default=None, metadata={"help": "Steps over which latent_weight rises from 0, along a cosine."}
    )
    steps_per_block: float | None = field(
        default=None, metadata={"help": "Steps for which each block is trained on its own."}
    )
    overlap: int | None = field(
        default=None, metadata={"help": "Layers before each block boundary that learn from both blocks."}
    )
    schedule: str = field(
        default=FIXED,
        metadata={
            "help": "fixed: freeze at freeze_start and every freeze_interval steps from then on. auto: freeze layers "
            "when they have settled; not before freeze_start, at least freeze_interval steps apart, and no more than "
            "num_freezes or max_frozen allow (default: three quarters of the layers)."
        },
    )
    settled_drift: float | None = field(
        default=None,
        metadata={
            "help": "Change of what a layer represents (1 - CKA) until the end of the run, projected, below which it "
            f"has settled, of schedule=auto (default {MAX_DRIFT})."
        },
    )
    settled_growth: float | None = field(
        default=None,
        metadata={
            "help": "Growth of the norm of a layer's weights until then, as a share, below which it has settled "
            f"(default {MAX_GROWTH})."
        },
    )
    freeze_start: float | None = field(default=None, metadata={"help": "Step of the first freezing."})
    freeze_interval: float | None = field(default=None, metadata={"help": "Steps between freezings."})
    layers_per_freeze: int | None = field(
        default=None, metadata={"help": "Layers frozen at each freezing (default 1)."}
    )
    num_freezes: int | None = field(default=None, metadata={"help": "Number of freezings."})
    max_frozen: int | None = field(default=None, metadata={"help": "Maximum number of frozen layers."})
    target_layers: list[int] | None = field(
        default=None, metadata={"help": "Layer predicted after each freezing (default: the last frozen layer)."}
    )
    predict_latents: bool | None = field(
        default=None, metadata={"help": "False: freeze layers, but keep predicting what the method predicts."}
    )
    latent_patch_fraction: float | None = field(
        default=None, metadata={"help": "Share of the tokens whose latents are computed and predicted (default 1)."}
    )
    keep_targets: bool | None = field(default=None, metadata={"help": "Keep predicting all earlier targets, too."})

    def build(
        self, config: LayerLockViTConfig, teacher_depth: int | None = None, max_steps: int | None = None
    ) -> list[Stage]:
        """The stages of a run on a model of this configuration.

        Args:
            teacher_depth: layers of the teacher; those of the model if None.
            max_steps: steps of the run; settings below 1 are shares of them.

        Raises:
            ValueError: naming the field, if the settings contradict each other or the model.
        """
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("pixel_patch_fraction", "latent_patch_fraction"):
            fraction = getattr(self, name)
            if fraction is not None and not 0 < fraction <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {fraction}")
        if self.schedule not in (FIXED, AUTO):
            raise ValueError(f"schedule must be {FIXED} or {AUTO}, got {self.schedule!r}")
        settings = Settings(self, max_steps)
        stages = METHODS[self.method](config, settings, teacher_depth or config.num_hidden_layers)
        if self.schedule == AUTO:
            settings.given(**LIMIT_SETTINGS, **LOCKED_SETTINGS, **RULE_SETTINGS)  # `freezing` uses them
        elif self.freeze_start is not None:
            stages = self._lock(stages, settings, config)
        for name in settings.unread():
            hint = f"leave it out (--{name} none takes back a recipe's)"
            if self.schedule == AUTO:
                raise ValueError(f"{name} is set but schedule=auto does not read it: {hint}")
            if name in RULE_SETTINGS.values():
                raise ValueError(f"{name} is set but schedule is not auto: set it, or leave {name} out")
            if self.freeze_start is None and name in LOCKING_SETTINGS:
                raise ValueError(f"{name} is set but freeze_start is not: without it nothing is ever frozen")
            raise ValueError(f"{name} is set but the method {self.method} does not read it: {hint}")
        return stages

    def freezing(self, config: LayerLockViTConfig, max_steps: int, switch_warmup_steps: int) -> AutoFreezing | None:
        """The limits within which a run with `schedule="auto"` decides when to freeze; None for other runs.

        Raises:
            ValueError: naming the field that does not fit the model or the run.
        """
        if self.schedule != AUTO:
            return None
        settings = Settings(self, max_steps)
        return AutoFreezing.of_run(
            config.num_hidden_layers,
            max_steps,
            switch_warmup_steps,
            rule=SettlingRule(**settings.given(**RULE_SETTINGS)),
            **settings.given(**LIMIT_SETTINGS, **LOCKED_SETTINGS),
        )

    def _lock(self, base: list[Stage], settings: "Settings", config: LayerLockViTConfig) -> list[Stage]:
        if self.freeze_interval is None and self.num_freezes != 1:
            raise ValueError(
                "freeze_start is set but freeze_interval is not: set freeze_interval, the steps between two freezings"
            )
        given = settings.given(**SCHEDULE_SETTINGS)
        if "target_layers" in given:
            given["target_layers"] = tuple(given["target_layers"])
        schedule = FreezeSchedule(**{"interval": 1} | given)
        for step, num_frozen in schedule.freezings():
            if num_frozen > config.num_hidden_layers:
                raise ValueError(
                    f"the freezing at step {step} makes {num_frozen} frozen layers, but the ViT has "
                    f"{config.num_hidden_layers}: lower num_freezes or layers_per_freeze, or set max_frozen"
                )
        return locked(base, schedule, **settings.given(**LOCKED_SETTINGS))


class Settings:
    """The stage arguments that the user set, in steps where they are shares of the run, and which of them have been
    read."""

    def __init__(self, arguments: StageArguments, max_steps: int | None = None):
        names = (field.name for field in fields(StageArguments) if field.name not in ("method", "schedule"))
        self._set = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
        for name in [name for name in self._set if name in STEP_SETTINGS]:
            self._set[name] = whole_steps(name, self._set[name], max_steps, least=1)
        self._read = set()

    def given(self, **names: str) -> dict:
        """Keyword arguments for a method: `keyword="setting"` for each setting it reads, those that are not set left
        to the method's defaults."""
        self._read |= {*names.values()}
        return {keyword: self._set[name] for keyword, name in names.items() if name in self._set}

    def unread(self) -> list[str]:
        """The settings that the method has not read."""
        return [name for name in self._set if name not in self._read]


def _mae(config, settings, teacher_depth):
    given = settings.given(normalize="normalize_pixels", patch_fraction="pixel_patch_fraction", loss="pixel_loss")
    return mae(config.decoder_depths[-1], **given)


def _teacher_latents(config, settings, teacher_depth):
    given = {"target_layer": teacher_depth} | settings.given(target_layer="target_layer")
    if not 1 <= given["target_layer"] <= teacher_depth:
        raise ValueError(
            f"target_layer must be at most {teacher_depth}, the number of layers of the teacher, got "
            f"{given['target_layer']}"
        )
    return teacher_latents(config.decoder_depths[-1], **given)


def _mae_and_latents(config, settings, teacher_depth):
    if not config.latent_head_depths:
        raise ValueError("latent_head_depths must name the layers that the method mae_and_latents predicts")
    given = settings.given(weight="latent_weight", ramp_steps="latent_weight_ramp_steps")
    return mae_and_latents(config.decoder_depths[-1], config.latent_head_depths, **given)


def _blockwise(config, settings, teacher_depth):
    return blockwise(config.decoder_depths, **settings.given(normalize="normalize_pixels", overlap="overlap"))


def _blockwise_in_sequence(config, settings, teacher_depth):
    given = settings.given(normalize="normalize_pixels", steps_per_block="steps_per_block")
    if "steps_per_block" not in given:
        raise ValueError("steps_per_block must be set for the method blockwise_in_sequence")
    return blockwise_in_sequence(config.decoder_depths, **given)


# From the configuration, the settings and the teacher's number of layers to stages. A method is an entry here.
METHODS = {
    "mae": _mae,
    "teacher_latents": _teacher_latents,
    "mae_and_latents": _mae_and_latents,
    "blockwise": _blockwise,
    "blockwise_in_sequence": _blockwise_in_sequence,
}
