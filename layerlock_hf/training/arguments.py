"""Training arguments of LayerLock, and where they depart from those of Transformers."""

import math
from dataclasses import dataclass, field

import torch
from accelerate.utils import parse_flag_from_env
from huggingface_hub import get_token
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy

from ..utils.bounds import MAX_SEED, check_bounds
from ..utils.hub_names import check_hub
from ..utils.processes import start_processes
from .schedules import LEARNING_RATE_DECAYS, whole_steps


# Settings of `TrainingArguments` that this trainer does not read, and what to set instead
REPLACED = {"lr_scheduler_type": "learning_rate_decay", "num_train_epochs": "max_steps"}
# Those for which there is nothing to set, and why
NOTHING_IS_EVALUATED = "only readout_data evaluates anything"
UNHEEDED = {
    "lr_scheduler_kwargs": "learning_rate_decay has no further settings",
    "label_smoothing_factor": "nothing is classified",
    "neftune_noise_alpha": "no words are embedded",
    "use_liger_kernel": "there are no kernels for this model",
    "data_seed": "seed also draws the clips",
    **dict.fromkeys(("do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_on_start"), NOTHING_IS_EVALUATED),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model"), NOTHING_IS_EVALUATED),
}

# What Transformers and PyTorch check late or not at all
BOUNDS = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "global_batch_size"), (1, math.inf)
    ),
    **dict.fromkeys(("dataloader_prefetch_factor", "ddp_timeout", "schedule_stretch"), (1, math.inf)),
    **dict.fromkeys(("save_total_limit", "logging_steps", "save_steps"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "first_learning_rate", "last_learning_rate", "max_grad_norm"), (0, math.inf)),
    **dict.fromkeys(("weight_decay", "weight_decay_end", "adam_epsilon"), (0, math.inf)),
    **dict.fromkeys(("dataloader_num_workers", "diagnostics_steps", "switch_warmup_steps"), (0, math.inf)),
    "warmup_steps": (0, math.inf),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "teacher_momentum", "teacher_momentum_end"), (0, 1)),
    "seed": (0, MAX_SEED),
}


@dataclass
class LayerLockTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, with these departures.

    New: `global_batch_size`, the schedules of learning rate, weight decay and teacher (which replace
    `lr_scheduler_type`), `heads_start_at_mean`, `settle_blocks` and `diagnostics_steps`. Other defaults: AdamW betas
    (0.9, 0.95) and weight decay 0.05 (LayerLock, Table 8); no gradient clipping, which the paper does not mention
    (at 1, the default of Transformers, most steps of latent stages would be, and few of MAE);
    `train_sampling_strategy="sequential"`, because `PretrainingClips` are the whole run in order, shuffled once per
    epoch by themselves; `ddp_find_unused_parameters=False`, because DDP is wrapped anew at every switch;
    `remove_unused_columns=False`; `logging_nan_inf_filter=False`, because a loss that is not finite stops the run;
    persistent data workers. A run is measured in steps: `max_steps` is required.

    Raises:
        ValueError: if the batch sizes contradict each other, or `max_steps` is missing.
    """

    output_dir: str | None = field(default=None, metadata={"help": "Folder for checkpoints, logs and the model."})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Clips per optimizer step across all processes; sets gradient_accumulation_steps."},
    )
    switch_warmup_steps: float = field(
        default=1000,
        metadata={"help": "Steps, or share of the run, of learning rate warm-up after each switch of target."},
    )
    learning_rate_decay: str = field(
        default="cosine", metadata={"help": "Shape of the schedule after the warm-up: cosine, linear or constant."}
    )
    first_learning_rate: float = field(default=0.0, metadata={"help": "Learning rate at which the warm-up starts."})
    last_learning_rate: float = field(default=0.0, metadata={"help": "Learning rate at which the decay ends."})
    schedule_stretch: float = field(
        default=1.0,
        metadata={"help": "Length of all schedules as a multiple of max_steps; above 1, the run ends before they do."},
    )
    schedule_restarts: bool = field(
        default=False, metadata={"help": "Restart the learning rate schedule at every stage."}
    )
    weight_decay_end: float | None = field(
        default=None, metadata={"help": "Final weight decay, reached along a cosine (default: it stays constant)."}
    )
    teacher_momentum: float = field(
        default=0.998,
        metadata={"help": "Momentum of an EMA teacher: the share of its weights that it keeps in each step."},
    )
    teacher_momentum_end: float | None = field(
        default=None, metadata={"help": "Final teacher momentum, reached linearly (default: it stays constant)."}
    )
    heads_start_at_mean: bool = field(
        default=True,
        metadata={
            "help": "Initialise the bias of a new head to the mean of its target over the clips of its first step."
        },
    )
    settle_blocks: bool = field(
        default=True,
        metadata={"help": "In local stages, backpropagate each block before the next one runs, which saves memory."},
    )
    frozen_dtype: str | None = field(
        default=None,
        metadata={
            "help": "bfloat16: keep the linear weights of frozen layers in it. Needs bf16=True, and changes no loss."
        },
    )
    diagnostics_steps: int = field(
        default=100, metadata={"help": "Steps between measurements of features and weights (0: never)."}
    )
    save_stages: bool = field(
        default=False,
        metadata={
            "help": "Keep the model as it is when each stage begins, in OUT/stages/stage-K, to push every stage to "
            "the Hub as a revision of its own."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "aliases": ["--resume"],
            "help": "Checkpoint to resume from, or auto: the newest complete one in output_dir, if any.",
        },
    )
    branch: bool = field(
        default=False,
        metadata={
            "help": "resume_from_checkpoint may be of a run whose stages differ from the checkpoint's step on: go on "
            "from it with the stages of this run."
        },
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Experiment trackers, such as tensorboard wandb, or none."},
    )
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of the linear layers' weights."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Norm to which gradients are clipped (default: no clipping)."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    train_sampling_strategy: str = field(
        default="sequential",
        metadata={"help": "Must be sequential: the dataset is the whole run, in training order."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Must be False: DDP is rewrapped at every switch instead."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave at False: the collator needs all columns."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave at False: a loss that is not finite stops the run."}
    )

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("output_dir must be set: it is where checkpoints, logs and the model go")
        check_bounds(self, BOUNDS)
        for name, instead in REPLACED.items():
            if getattr(self, name) != TrainingArguments.__dataclass_fields__[name].default:
                raise ValueError(f"{name} has no effect here: set {instead}")
        for name, reason in UNHEEDED.items():
            known = TrainingArguments.__dataclass_fields__.get(name)
            if known is not None and getattr(self, name) != known.default:
                raise ValueError(f"{name} has no effect here: {reason}, so leave it out")
        trackers = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in trackers:
            if name not in ("all", "none", *get_available_reporting_integrations()):
                raise ValueError(
                    f"report_to must be among {', '.join(['none', *get_available_reporting_integrations()])}, got "
                    f"{name}, which is not installed: install it with pip, or choose another"
                )
        if self.push_to_hub:
            if self.resume_from_checkpoint is None:  # else a run that a scheduler has started again would not go on
                check_hub("push_to_hub is set")
            if HubStrategy(self.hub_strategy) not in (HubStrategy.EVERY_SAVE, HubStrategy.END):
                raise ValueError(
                    f"hub_strategy must be every_save or end, got {HubStrategy(self.hub_strategy).value}: "
                    "checkpoints hold the state of the optimizer, which is no use on the Hub"
                )
            if self.hub_revision is not None:
                raise ValueError("hub_revision must be left out: main shows the model, and stages have tags")
            if not (self.hub_token or get_token()):
                raise ValueError("push_to_hub needs a token: run hf auth login, or set HF_TOKEN")
        elif self.hub_model_id is not None:
            raise ValueError("hub_model_id is set but push_to_hub is not: set both, or neither")
        if self.bf16 and not (self.use_cpu or torch.cuda.is_available()):
            raise ValueError("bf16 without a GPU needs use_cpu: add --use_cpu true")
        if self.fp16 and (self.use_cpu or not torch.cuda.is_available()):
            raise ValueError("fp16 needs a GPU: on a CPU use bf16, or neither")
        if self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            raise ValueError("deepspeed is not supported: it keeps training layers that have been frozen")
        if self.train_sampling_strategy != "sequential":
            raise ValueError(
                f"train_sampling_strategy must be sequential, got {self.train_sampling_strategy}: the dataset is the "
                "whole run in order, and a resumed run would see other clips"
            )
        if self.save_on_each_node:
            raise ValueError("save_on_each_node is not supported: output_dir must be a folder that all nodes share")
        if self.branch and self.resume_from_checkpoint is None:
            raise ValueError("branch is set but resume_from_checkpoint is not: name the checkpoint to go on from")
        if self.branch and self.schedule_restarts:
            raise ValueError(
                "schedule_restarts must be left out of a branch: with it, the learning rate depends on when the next "
                "stage begins, and the checkpoint's run had another"
            )
        if self.save_only_model:
            raise ValueError("save_only_model is not supported: a run could not resume from such checkpoints")
        if self.enable_jit_checkpoint:
            raise ValueError("enable_jit_checkpoint must be left out: SIGTERM always saves a checkpoint")
        start_processes(self.use_cpu, self.ddp_backend, self.ddp_timeout)
        super().__post_init__()
        if self.max_steps < 1:
            raise ValueError(
                f"max_steps must be set to at least 1, got {self.max_steps}: freeze schedules are measured in "
                "optimizer steps"
            )
        self.switch_warmup_steps = whole_steps("switch_warmup_steps", self.switch_warmup_steps, self.max_steps)
        try:  # what an optimizer needs may not be installed
            Trainer.get_optimizer_cls_and_kwargs(self)
        except (ImportError, ValueError) as error:
            raise ValueError(f"optim={self.optim.value}: {error}") from error
        if self.learning_rate_decay not in LEARNING_RATE_DECAYS:
            raise ValueError(
                f"learning_rate_decay must be one of {', '.join(LEARNING_RATE_DECAYS)}, got {self.learning_rate_decay}"
            )
        if self.frozen_dtype not in (None, "bfloat16"):
            raise ValueError(f"frozen_dtype must be bfloat16 or not be set, got {self.frozen_dtype}")
        if self.frozen_dtype and not self.bf16:
            raise ValueError("frozen_dtype=bfloat16 needs bf16=True: without autocast, layers compute in float32")
        # Two names of one argument, the first one the older
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
            if (getattr(self, name, None) or {}).get("use_reentrant"):
                raise ValueError(f"{name}: use_reentrant must be False: layers above frozen ones would learn nothing")
        if self.ddp_find_unused_parameters:
            raise ValueError("ddp_find_unused_parameters must be False: it would keep communicating frozen layers")
        if self.global_batch_size is not None:
            self._divide_global_batch()
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0

    def _divide_global_batch(self):
        per_step = self.per_device_train_batch_size * self.world_size
        if self.global_batch_size % per_step:
            raise ValueError(
                "global_batch_size must be a multiple of "
                f"per_device_train_batch_size={self.per_device_train_batch_size} times {self.world_size} processes, "
                f"got {self.global_batch_size}"
            )
        accumulation = self.global_batch_size // per_step
        if self.gradient_accumulation_steps not in (1, accumulation):
            raise ValueError(
                f"gradient_accumulation_steps must be {accumulation} for global_batch_size={self.global_batch_size}, "
                f"got {self.gradient_accumulation_steps}: leave one of the two out"
            )
        self.gradient_accumulation_steps = accumulation
