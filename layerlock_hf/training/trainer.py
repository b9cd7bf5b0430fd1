"""A Trainer that walks through the stages of a run: freezes, swaps heads and keeps the optimizer to what trains."""

import math
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import BaseVideoProcessor, TrainerCallback
from transformers.utils import logging

from ..hub.documents import SETTINGS, read_object
from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining, pair_masks
from ..models.objectives import Stage
from ..utils.memory import peak_memory_gib
from ..utils.processes import raised_together
from .arguments import LayerLockTrainingArguments
from .callbacks import ScheduleCallback, StageCallback
from .checkpoints import ASIDE, STAGES_FOLDER, publish
from .checks import check_batches, check_masks
from .compilation import compile_layers
from .diagnostics import stage_statistics
from .fault_tolerance import FaultTolerantTrainer
from .flops import step_flops
from .freezing import AutoFreezing, Freezer, possible_stages
from .memory_check import DoesNotFit, check_fits
from .run_file import CheckpointRefused, check_run_file, describe, read_run_file, write_run_file
from .running_means import RunningMeans
from .schedules import check_schedule, cosine, linear, scheduled_factor
from .settling import Observation, observe
from .sharding import let_methods_gather, set_up_sharding
from .stage_switch import discard_a_backward, freeze, fresh_heads, mean_targets, rebuild_optimizer, rewrap
from .stages import check_stages, stage_at
from .teachers import teacher_of_run


logger = logging.get_logger(__name__)


class LossNotFinite(RuntimeError):
    """The run has diverged; the message is for the user."""


class LayerLockTrainer(FaultTolerantTrainer):
    """`transformers.Trainer` for a run of several stages.

    The stage is a pure function of `state.global_step`. A checkpoint of step N is written before the switch at N, so
    it holds the stage of step N - 1, and resuming walks through the switch like the run that was never interrupted.

    Args:
        model: the model to pretrain.
        args: the training arguments.
        stages: what to do from which step on; plain MAE if None.
        train_dataset, data_collator, callbacks: as for `Trainer`. Batches hold `pixel_values_videos` (uint8, or float
            in [0, 1]), `context_ids`, `target_ids` (lists of these with several types of mask), and optionally
            `num_padded`. A collator that has a `grid_size` draws masks for it, and clips of another one are refused.
        teacher: a network that does not learn, of stages that predict a teacher's latents. Without it these stages
            predict those of an exponential moving average of the encoder.
        batch_transform: makes what a batch holds from what the collator returned, once that is on the device.
        processing_class: the video processor of the model, which is saved with it.
        freezing: the limits within which the run itself decides when layers freeze, and appends to its stages.

    Raises:
        ValueError: if the model cannot do what a stage asks.
    """

    # Private methods of the Trainer that are overridden here are listed in tests/training/test_trainer_internals.py.
    # The losses are means over the batch: the Trainer divides them by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: LayerLockViTForPretraining,
        args: LayerLockTrainingArguments,
        stages: list[Stage] | None = None,
        train_dataset=None,
        data_collator=None,
        callbacks: list[TrainerCallback] | None = None,
        teacher: nn.Module | None = None,
        batch_transform: Callable[[dict], dict] | None = None,
        processing_class: BaseVideoProcessor | None = None,
        freezing: AutoFreezing | None = None,
    ):
        self.stages = list(check_stages(stages or [model.pixel_stage]))
        self.freezing, self.possible_stages = freezing, possible_stages(self.stages, freezing)
        for stage in self.possible_stages:
            model.check_stage(stage)
        check_masks(data_collator, model.config, args)
        self._doubts = check_schedule(self.stages, args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=data_collator,
            callbacks=callbacks,
            processing_class=processing_class,
        )
        set_up_sharding(self.accelerator, bool(self.args.fsdp))
        if self.args.frozen_dtype and self.is_fsdp_enabled:
            raise ValueError(
                "frozen_dtype must be left out under FSDP, which shards the parameters of a layer together and "
                "needs one dtype"
            )
        self.stage = self.stages[0]
        self.batch_transform = batch_transform
        self.teacher = teacher_of_run(teacher, model, self.stages, args.teacher_momentum)
        self.teacher.to(self.args.device)
        if self._dynamo.backend != DynamoBackend.NO:
            for network in (model, self.teacher.network):
                compile_layers(network, self.args.gradient_checkpointing, **self._dynamo.to_kwargs())
        if self.is_fsdp_enabled:
            self.teacher.shard(self.accelerator)
        self._wrapper_is_new, self._diagnosed_step = False, -1
        self._own_id = uuid.uuid4().hex  # of a run that writes no settings.json
        self._batches = []
        self._means = RunningMeans()
        self.add_callback(StageCallback(self))
        self._freezer = freezing and Freezer(self, freezing)
        if self._freezer is not None:
            self.add_callback(self._freezer)
        self.add_callback(ScheduleCallback(self.stages, self._doubts))

    def _build_accelerator_args(self, **kwargs):
        built = super()._build_accelerator_args(**kwargs)
        # accelerate would compile the model as a whole
        self._dynamo, built["dynamo_plugin"] = built["dynamo_plugin"], TorchDynamoPlugin(backend="no")
        return built

    # ---- stages

    def begin_run(self):
        """The model is wrapped now, whatever by."""
        self._batches_are_checked = False
        self._check_memory()
        if self.is_fsdp_enabled:
            let_methods_gather(self._core())
        if self._publisher is not None:
            self._send_earlier_stages()

    def _send_earlier_stages(self):
        """Of a run that is resumed: the process that kept them may have ended before they were on the Hub."""
        for number, stage in enumerate(self.stages):
            folder = Path(self.args.output_dir) / STAGES_FOLDER / f"stage-{number}"
            if stage.start < self.state.global_step and folder.is_dir():
                self._publisher.send(folder, folder.name)

    def _check_memory(self):
        """Of a collator of ours, which tells the masks before the first batch is made."""
        config = self._core().config
        masks = getattr(self.data_collator, "masks", None)
        with raised_together(DoesNotFit):
            if masks is not None and self.data_collator.grid_size == config.grid_size:
                pairs, is_resumed = masks(config.grid_size, [0], self.args.seed), bool(self.optimizer.state)
                check_fits(config, self.possible_stages, pairs, self.args, self.accelerator, is_resumed)

    def begin_step(self, step: int):
        """Bring everything to the state of this optimizer step, a function of the step and of its clips alone."""
        if not self._batches_are_checked:
            check_batches(self._core(), self._batches, getattr(self.data_collator, "grid_size", None))
            self._batches_are_checked = True
        if step == 0:
            self._start_at_mean({(objective.read_at, objective.target.head) for objective in self.stage.objectives})
            if self._freezer is not None:
                self._freezer.take_clips(self._batches)
        self.enter_stage(stage_at(self.stages, step))
        if self.args.save_stages and self.is_border(step):
            self.save_stage(self.stages.index(self.stage))
        if self.args.weight_decay_end is not None:
            decay = cosine(self.args.weight_decay, self.args.weight_decay_end, step / self._schedule_steps)
            self.optimizer.param_groups[0]["weight_decay"] = decay

    def is_border(self, step: int) -> bool:
        """Whether a stage starts at this step."""
        return any(stage.start == step for stage in self.stages)

    def observe_layers(self, clips: torch.Tensor) -> Observation:
        """All layers as they are now, of these clips, the same on all processes: (n, T, C, H, W)."""
        at_once = self.args.per_device_train_batch_size
        observed = observe(self._core(), clips, self.accelerator, at_once, self._prepare_video)
        if self.is_fsdp_enabled:
            self._core().reshard()  # else the next forward would use what is gathered now
        return observed

    def _prepare_video(self, video: torch.Tensor) -> torch.Tensor:
        return self._prepare_inputs({"pixel_values_videos": video})["pixel_values_videos"]

    def update_teacher(self, step: int):
        """After the optimizer's step."""
        if not self.accelerator.optimizer_step_was_skipped:
            begin, end = self.args.teacher_momentum, self.args.teacher_momentum_end
            momentum = linear(begin, begin if end is None else end, step / self._schedule_steps)
            self.teacher.update(self._core().encoder, momentum)

    @property
    def _schedule_steps(self) -> float:
        """Length of the schedules, which may be cut before their end (V-JEPA)."""
        return self.args.max_steps * self.args.schedule_stretch

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """An optimizer over exactly the parameters that learn at the step where training starts."""
        self.stage = stage_at(self.stages, max(self.state.global_step - 1, 0))
        freeze(self._core(model), self.stage, self.args.frozen_dtype)
        self.optimizer = None
        self._wrapper_is_new = True
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Weight decay is for the weights of linear layers, which alone are matrices: norms, biases, position tables
        and decoding tokens are exempt."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim == 2]

    def enter_stage(self, stage: Stage):
        """Freeze, reset the head of a new target, and rebuild optimizer and DDP around what learns from now on."""
        if stage == self.stage:
            return
        model = self._core()
        fresh = fresh_heads(self.stage, stage)
        self.stage = stage
        freeze(model, stage, self.args.frozen_dtype)
        # Seeded by (seed, stage) alone: the same on every process and after a resume
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + stage.start)
        heads = [model.reset_head(read_at, name, generator) for read_at, name in sorted(fresh)]
        self._start_at_mean(fresh)
        fresh_parameters = {parameter for head in heads for parameter in head.parameters()}
        decayed = self.get_decay_parameter_names(model)
        rebuild_optimizer(getattr(self.optimizer, "optimizer", self.optimizer), model, decayed, fresh_parameters)
        self._wrapper_is_new = rewrap(self.model_wrapped, self.accelerator)

    def _start_at_mean(self, heads: set[tuple[int, str]]):
        """Let these heads (depth, name) start by predicting the mean of their targets over all clips of the step that
        begins, in whatever parts the processes and micro-batches hold them."""
        if not self.args.heads_start_at_mean or not heads:
            return
        model = self._core()
        inputs = (self._prepare_inputs(dict(batch)) for batch in self._batches)  # on the device one after the other
        means = mean_targets(model, self.stage, inputs, self.teacher.network, self.accelerator)
        if self.is_fsdp_enabled:
            model.reshard()  # else the next forward would use the biases that are gathered now
        for objective, mean in zip(self.stage.objectives, means, strict=True):
            if (objective.read_at, objective.target.head) in heads:
                model.set_head_bias(objective.read_at, objective.target.head, mean)

    def _core(self, model=None) -> LayerLockViTForPretraining:
        return self.accelerator.unwrap_model(model if model is not None else self.model)

    # ---- steps

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: scheduled_factor(step, num_training_steps, self.stages, self.args),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        with self._means.waiting_for_data():
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.batch_transform is not None:
            batches = [self.batch_transform(batch) for batch in map(super()._prepare_inputs, batches)]
        self._batches = batches
        return batches, num_items

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if inputs["pixel_values_videos"].dtype == torch.uint8:  # clips travel as bytes, floats are made on the device
            inputs["pixel_values_videos"] = inputs["pixel_values_videos"].float() / 255
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        num_padded = inputs.pop("num_padded", 0)
        outputs = self._forward(model, inputs)
        for label, loss, variance in zip(self.stage.labels, outputs.losses, outputs.target_variances, strict=True):
            self._means.add(f"{label}/loss", loss)
            self._means.add(f"{label}/target_variance", variance)
        self._means.add_clips(inputs["pixel_values_videos"].shape[0], num_padded)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _forward(self, model, inputs):
        stage = self.stage.at(self.state.global_step)
        # accelerate puts the autocast into the forward, but not into one of FSDP2
        with self.accelerator.autocast():
            return model(
                **inputs,
                stage=stage,
                teacher=self.teacher.network,
                # FSDP must see the backward; with fp16, gradients settled before the loss is scaled would underflow
                settle_blocks=self.args.settle_blocks and not self.is_fsdp_enabled and not self.args.fp16,
            )

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        # Under FSDP the encoder's layers run within the model's own forward only
        every = 0 if self.is_fsdp_enabled else self.args.diagnostics_steps
        if every and self.state.global_step % every == 0 and self._diagnosed_step != self.state.global_step:
            self._diagnose(self._prepare_video(inputs["pixel_values_videos"]))
        if self._wrapper_is_new and isinstance(model, DistributedDataParallel):
            first = self._prepare_inputs(dict(inputs))
            first.pop("num_padded", None)
            with self.compute_loss_context_manager():
                discard_a_backward(model, lambda: self._forward(model, first).loss)
        self._wrapper_is_new = False
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.args.max_grad_norm > 0:
            whole = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
            self._means.add("clipped_fraction", (whole > self.args.max_grad_norm).float())
        return norm

    def floating_point_ops(self, inputs) -> int:
        video, context_ids, target_ids = (
            inputs[name] for name in ("pixel_values_videos", "context_ids", "target_ids")
        )
        masks = [(seen.shape[1], hidden.shape[1]) for seen, hidden in pair_masks(context_ids, target_ids)]
        num_tokens = math.prod(self._core().encoder.grid_size(video))
        return video.shape[0] * step_flops(self._core().config, self.stage, masks, num_tokens, self.teacher.sizes)

    # ---- logs

    @torch.no_grad()
    def _diagnose(self, video: torch.Tensor):
        self._diagnosed_step = self.state.global_step
        model = self._core()
        found = stage_statistics(model, self.stage, video, self.accelerator)
        for name, value in (found | self.teacher.diagnostics(model.encoder)).items():
            self._means.add(name, value)

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if self.is_finished:
            return  # the Trainer's summary of no steps at all, with a loss of 0
        if "grad_norm" in logs or "learning_rate" in logs:
            if not math.isfinite(logs["loss"]):
                raise LossNotFinite(
                    f"the loss is {logs['loss']} in the steps up to {self.state.global_step}, in the stage that "
                    f"{describe(self.stage)}. Lower learning_rate, or resume from the last checkpoint"
                )
            logs.update(self._stage_logs())
        super().log(logs, start_time)

    def _stage_logs(self) -> dict[str, float]:
        return {
            "stage": self.stages.index(self.stage),
            "num_frozen": self.stage.num_frozen,
            **self._means.take(self.accelerator),
            "peak_memory_gib": peak_memory_gib(self.args.device),
            "total_flops": self.state.total_flos,
        }

    # ---- checkpoints

    def write_model(self, folder: str, is_final: bool):
        with self._failure_noted():
            self.teacher.save(folder, self.args.should_save)
        super().write_model(folder, is_final)
        self._write_record(folder)
        if self._freezer is not None and self.args.should_save and not is_final:
            with self._failure_noted():
                self._freezer.save(folder)

    def _write_record(self, folder: str):
        """What belongs to a model beside its weights."""
        if self.args.should_save:
            model = self._core()
            learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
            with self._failure_noted():
                model.config.save_pretrained(folder)  # which sharded checkpoints lack otherwise, and the processor
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)
                run_id = read_object(Path(self.args.output_dir) / SETTINGS).get("run_id", self._own_id)
                write_run_file(folder, self.stages, learning, self._identity(), run_id, self.state.global_step)

    def save_stage(self, number: int):
        """Keep the model as it is now, where a stage has begun and its layers are frozen.

        Raises:
            CheckpointNotWritten: on all processes, if one of them could not write its part.
        """
        name = f"stage-{number}"
        folder = Path(self.args.output_dir) / STAGES_FOLDER / name
        aside = Path(self.args.output_dir) / ASIDE / name
        if self.args.should_save:
            folder.parent.mkdir(parents=True, exist_ok=True)
        with self._agreeing(name, aside, partial(publish, aside, folder)):
            super().write_model(str(aside), is_final=True)
            self._write_record(str(aside))
        if self._publisher is not None:
            self._publisher.send(folder, name)

    def _identity(self) -> dict:
        """What, besides stages and model, a resumed run must share with the one that wrote the checkpoint."""
        return {
            "seed": self.args.seed,
            "clips_per_step": self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
            "order": repr(getattr(self.train_dataset, "order", None)),
            "masks": repr(getattr(self.data_collator, "masks", None)),
            "teacher": self.teacher.weight_hash,
            "freezing": None if self.freezing is None else self.freezing.identity,
        }

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        checkpoint = super()._checkpoint_to_resume(wanted)
        if checkpoint is not None and self._freezer is not None:
            self._freezer.load(checkpoint)
        return checkpoint

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        config, identity = self._core(model).config, self._identity()
        check_run_file(resume_from_checkpoint, self.stages, config, identity, may_branch=self.args.branch)
        self._own_id = read_run_file(resume_from_checkpoint).get("run_id", self._own_id)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.teacher.load(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            learning = [name for name, parameter in self._core().named_parameters() if parameter.requires_grad]
            if read_run_file(checkpoint)["learning"] != learning:
                raise CheckpointRefused(
                    f"the optimizer in {checkpoint} holds other parameters than those that are trained now: resume "
                    "with the same settings"
                )
        super()._load_optimizer_and_scheduler(checkpoint)
