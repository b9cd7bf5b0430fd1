"""A Trainer that walks through the stages of a run: freezes, swaps heads and keeps the optimizer to what trains."""

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, Trainer, TrainerCallback
from transformers.utils import logging

from ..models.configuration_layerlock import architecture_fields
from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.objectives import Stage
from .arguments import LayerLockTrainingArguments
from .flops import step_flops
from .memory import peak_memory_gib, reset_peak_memory
from .schedules import learning_rate_factor
from .stages import check_stages, stage_at


logger = logging.get_logger(__name__)

RUN_FILE = "layerlock.json"


class StageCallback(TrainerCallback):
    """Enters a new stage at the beginning of its first optimizer step."""

    def __init__(self, trainer: "LayerLockTrainer"):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.enter_stage(stage_at(self.trainer.stages, state.global_step))


class StopwatchCallback(TrainerCallback):
    """Measures every step of a rehearsal. It comes after `StageCallback`, whose work is not measured."""

    def __init__(self, trainer: "LayerLockTrainer"):
        self.trainer, self.rows, self._start = trainer, [], 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        reset_peak_memory(args.device)
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.rows.append(
            {
                "seconds": time.perf_counter() - self._start,
                "trainable_parameters": self.trainer._core().num_parameters(only_trainable=True),
                "peak_memory_gib": peak_memory_gib(args.device),
            }
        )
        control.should_training_stop = state.global_step >= state.max_steps


class LayerLockTrainer(Trainer):
    """`transformers.Trainer` for a run of several stages.

    The stage is a pure function of `state.global_step`. A checkpoint of step N is written before the switch at N, so
    it holds the stage of step N - 1, and resuming walks through the switch like the run that was never interrupted.

    Args:
        model: the model to pretrain.
        args: the training arguments.
        stages: what to do from which step on; plain MAE if None.
        train_dataset, data_collator, callbacks: as for `Trainer`. Batches hold `pixel_values_videos` (uint8, or float
            in [0, 1]), `context_ids`, `target_ids`, and optionally `num_padded`.

    Raises:
        ValueError: if the model cannot do what a stage asks.
    """

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
    ):
        self.stages = check_stages(stages or [model.pixel_stage])
        for stage in self.stages:
            model.check_stage(stage)
        late = [stage.start for stage in self.stages if stage.start >= args.max_steps]
        if late:
            logger.warning(f"max_steps={args.max_steps} ends the run before the stages that start at steps {late}")
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, data_collator=data_collator, callbacks=callbacks
        )
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ValueError("fsdp is set, but accelerate would not use it with this launch")
        self.stage = self.stages[0]
        self._wrapper_is_new, self._is_finished = False, False
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._num_clips, self._clock = 0, time.perf_counter()
        self.add_callback(StageCallback(self))

    # ---- stages

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """An optimizer over exactly the parameters that learn at the step where training starts."""
        self.stage = stage_at(self.stages, max(self.state.global_step - 1, 0))
        self._core(model).freeze_for(self.stage)
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
        known_targets = {objective.target for objective in self.stage.objectives}
        fresh = {objective.target.head for objective in stage.objectives if objective.target not in known_targets}
        model.freeze_for(stage)
        for head in sorted(fresh):
            # Seeded by (seed, stage) alone: the same on every process and after a resume
            model.reset_head(head, torch.Generator().manual_seed(self.args.seed * 1_000_003 + stage.start))
        self.stage = stage
        self._rebuild_optimizer({parameter for head in fresh for parameter in model.heads[head].parameters()})
        self._rewrap()
        logger.info(describe(stage))

    def _core(self, model=None) -> LayerLockViTForPretraining:
        return self.accelerator.unwrap_model(model if model is not None else self.model)

    def _rebuild_optimizer(self, fresh_parameters: set):
        """In place, in `named_parameters()` order, because states are matched to parameters by position on resume."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        model = self._core()
        decayed = set(self.get_decay_parameter_names(model))
        learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        optimizer.param_groups[0]["params"] = [parameter for name, parameter in learning if name in decayed]
        optimizer.param_groups[1]["params"] = [parameter for name, parameter in learning if name not in decayed]
        kept = {parameter for _, parameter in learning} - fresh_parameters
        for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
            del optimizer.state[parameter]
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # a stale gradient would count in the norm that is clipped

    def _rewrap(self):
        """Construct DDP again in the same object: the training loop holds it in a local variable. Its buckets are made
        at construction, so without this the frozen layers would go on being communicated, or hang."""
        wrapper = self.model_wrapped
        if isinstance(wrapper, DistributedDataParallel):
            kwargs = self.accelerator.ddp_handler.to_kwargs() if self.accelerator.ddp_handler else {}
            wrapper.__init__(
                wrapper.module,
                device_ids=wrapper.device_ids,
                output_device=wrapper.output_device,
                init_sync=False,
                **kwargs,
            )
            self._wrapper_is_new = True

    # ---- steps

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            warmup_steps = self.args.get_warmup_steps(num_training_steps)

            def factor(step):
                return learning_rate_factor(
                    step, num_training_steps, warmup_steps, self.stages, self.args.switch_warmup_steps
                )

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        video = inputs["pixel_values_videos"]
        if video.dtype == torch.uint8:  # clips travel as bytes and become floats on the device
            inputs["pixel_values_videos"] = video.float() / 255
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        num_padded = inputs.pop("num_padded", None)
        outputs = model(**inputs, stage=self.stage)
        if num_padded is not None:
            self._add("padded_clips", num_padded.float())
        for objective, loss, variance in zip(
            self.stage.objectives, outputs.losses, outputs.target_variances, strict=True
        ):
            self._add(f"{label(objective)}/loss", loss)
            self._add(f"{label(objective)}/target_variance", variance)
        self._num_clips += inputs["context_ids"].shape[0]
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self._wrapper_is_new and isinstance(model, DistributedDataParallel):
            self._discard_a_backward(model, inputs)
        self._wrapper_is_new = False
        return super().training_step(model, inputs, num_items_in_batch)

    def _discard_a_backward(self, model: DistributedDataParallel, inputs):
        """DDP lays out its buckets twice: when constructed and after its first backward. From three processes on the
        two layouts sum in another order, and a resumed run would differ from the uninterrupted one in its last bits.
        """
        syncs, model.require_backward_grad_sync = model.require_backward_grad_sync, True
        inputs = self._prepare_inputs(dict(inputs))
        inputs.pop("num_padded", None)
        with self.compute_loss_context_manager():
            model(**inputs, stage=self.stage).loss.backward()
        model.zero_grad()
        model.require_backward_grad_sync = syncs

    def floating_point_ops(self, inputs) -> int:
        batch_size, num_context = inputs["context_ids"].shape
        num_tokens = math.prod(self._core().encoder.grid_size(inputs["pixel_values_videos"]))
        return batch_size * step_flops(self._core().config, self.stage, num_context, num_tokens)

    # ---- logs

    def _add(self, name: str, value: torch.Tensor):
        self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._counts[name] = self._counts.get(name, 0) + 1

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if self._is_finished:
            return  # the Trainer's summary of no steps at all, with a loss of 0
        if "grad_norm" in logs or "learning_rate" in logs:
            if not math.isfinite(logs["loss"]):
                raise RuntimeError(
                    f"the loss is {logs['loss']} in the steps up to {self.state.global_step}, in the stage that "
                    f"{describe(self.stage)}. Lower learning_rate, or resume from the last checkpoint"
                )
            logs.update(self._stage_logs())
        super().log(logs, start_time)

    def _stage_logs(self) -> dict[str, float]:
        logs = {"stage": self.stages.index(self.stage), "num_frozen": self.stage.num_frozen}
        for name, total in self._sums.items():
            mean = self.accelerator.reduce(total, "mean").item() / self._counts[name]
            logs[name] = mean * self._counts[name] if name == "padded_clips" else mean
        for name in [name for name in self._sums if name.endswith("/target_variance")]:
            head = name.removesuffix("/target_variance")
            logs[f"{head}/explained_variance"] = 1 - logs[f"{head}/loss"] / max(logs[name], 1e-12)
        now = time.perf_counter()
        logs["clips_per_second"] = self._num_clips * self.args.world_size / (now - self._clock)
        logs["peak_memory_gib"] = peak_memory_gib(self.args.device)
        logs["total_flops"] = self.state.total_flos
        self._sums, self._counts, self._num_clips, self._clock = {}, {}, 0, now
        return logs

    # ---- checkpoints

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        """As in `Trainer`, which however trains one more step when a finished run is resumed: leave it no epoch."""
        done = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs)
        self._is_finished = self.state.global_step >= max_steps
        if self._is_finished:
            logger.warning(f"nothing is left to train: step {self.state.global_step} of max_steps={max_steps} is done")
            return num_train_epochs, 0
        return done

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        path = Path(output_dir or self.args.output_dir) / RUN_FILE
        learning = [name for name, parameter in self._core().named_parameters() if parameter.requires_grad]
        record = {"stages": [asdict(stage) | {"is": describe(stage)} for stage in self.stages]}
        path.write_text(json.dumps(record | {"seed": self.args.seed, "learning": learning}, indent=1) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        record = read_run_file(resume_from_checkpoint)
        ours = json.loads(json.dumps([asdict(stage) | {"is": describe(stage)} for stage in self.stages]))
        if record["stages"] != ours:
            raise ValueError(
                f"{resume_from_checkpoint} was written by a run with other stages; its stages: "
                f"{[stage['is'] for stage in record['stages']]}, now: {[describe(stage) for stage in self.stages]}"
            )
        then, now = AutoConfig.from_pretrained(resume_from_checkpoint), self._core(model).config
        differing = [
            f"{name}: {getattr(then, name)} then, {getattr(now, name)} now"
            for name in architecture_fields()
            if name != "num_frozen_layers" and getattr(then, name) != getattr(now, name)
        ]
        if differing:
            raise ValueError(f"{resume_from_checkpoint} holds another model ({'; '.join(differing)})")
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            learning = [name for name, parameter in self._core().named_parameters() if parameter.requires_grad]
            if read_run_file(checkpoint)["learning"] != learning:
                raise ValueError(f"the optimizer in {checkpoint} holds other parameters than those that learn now")
        super()._load_optimizer_and_scheduler(checkpoint)

    # ---- rehearsal

    def rehearse(self) -> list[dict]:
        """One optimizer step of every stage, measured: seconds, trainable parameters, peak memory in GiB.

        It is a run of its own, through the same loop (precision, checkpointing, wrappers), of one step per stage and
        one batch per step, that leaves no files. Model and trainer are spent by it: start the run itself anew.
        """
        stages, self.stages = self.stages, [replace(stage, start=n) for n, stage in enumerate(self.stages)]
        self.args.max_steps, self.args.gradient_accumulation_steps = len(stages), 1
        stopwatch = StopwatchCallback(self)
        self.callback_handler.callbacks = [StageCallback(self), stopwatch]
        self.train()
        return [
            {"start": stage.start, "num_frozen": stage.num_frozen, "target": target_label(stage), **row}
            for stage, row in zip(stages, stopwatch.rows, strict=True)
        ]


def label(objective) -> str:
    """Name of an objective in the logs: `pixels`, or `layer_3` for the output of the third layer."""
    return f"layer_{objective.target.depth}" if objective.target.depth else objective.target.head


def target_label(stage: Stage) -> str:
    """All that a stage predicts, in tables and messages: `pixels`, or `pixels + layer_3`."""
    return " + ".join(label(objective) for objective in stage.objectives)


def describe(stage: Stage) -> str:
    """A stage in words."""
    return f"from step {stage.start} on freezes {stage.num_frozen} layers and predicts {target_label(stage)}"


def read_run_file(checkpoint: str) -> dict:
    """What `LayerLockTrainer` recorded in a checkpoint.

    Raises:
        ValueError: if the checkpoint was not written by it.
    """
    path = Path(checkpoint) / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a checkpoint of LayerLockTrainer: it has no {RUN_FILE}")
    return json.loads(path.read_text())
