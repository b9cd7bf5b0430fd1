"""Run jobs in this process, which may be one of several, and write on each what `read_reports` reads: see `Job`.

python toy_run.py OUTPUT_DIR JOBS, where JOBS is a JSON list of the fields of jobs.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import accelerate.state
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from toy_methods import Clips, make_trainer, step_logs
from transformers import TrainerCallback

from layerlock_hf.training.sharding import local
from layerlock_hf.utils.processes import run_and_exit


@dataclass
class Job:
    """One run.

    Args:
        name: of the run; its folder, too.
        wrapper: `"ddp"`; FSDP2 with its type of state dict, `"sharded"` or `"full"`; `"configured"`, as accelerate is.
        method: one of the toy methods.
        resume: the checkpoint it goes on from, below OUTPUT_DIR.
        save_at: the steps after which it saves; at the end it then saves the model, too.
        watch: report on every step.
        keep: write the weights to NAME-RANK.pt at the end.
        settings: arguments of training.
    """

    name: str
    wrapper: str = "ddp"
    method: str = "layerlock"
    resume: str | None = None
    save_at: tuple[int, ...] = ()
    watch: bool = False
    keep: bool = False
    settings: dict = field(default_factory=dict)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def digest(states: dict[str, dict[str, torch.Tensor]]) -> str:
    sha = hashlib.sha256()
    for weights in states.values():
        for tensor in weights.values():
            sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()[:16]


class Traffic:
    """Counts the bytes of the gradients that are reduced, and of the parameters that are gathered."""

    def __init__(self):
        self.counts = Counter()
        for kind, name in ((DefaultReduceScatter, "reduced"), (DefaultAllGather, "gathered")):
            kind.__call__ = self._counting(name, kind.__call__)

    def _counting(self, name, collective):
        def counted(this, output_tensor, input_tensor, **kwargs):
            self.counts[name] += max(output_tensor.nbytes, input_tensor.nbytes)
            return collective(this, output_tensor, input_tensor, **kwargs)

        return counted

    def take(self) -> dict[str, int]:
        counts, self.counts = self.counts, Counter()
        return dict(counts)


class Save(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


class Watch(TrainerCallback):
    """Looks at every step. Added last, it sees each switch done."""

    def __init__(self, trainer, traffic):
        self.trainer, self.traffic, self.rows = trainer, traffic, []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.frozen = {n: local(p).clone() for n, p in model.named_parameters() if not p.requires_grad}
        self.heads = {n: whole(p).square().sum().item() for n, p in model.named_parameters() if ".heads." in n}
        self.traffic.take()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.wrong_gradients = [n for n, p in model.named_parameters() if p.requires_grad == (p.grad is None)]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        traffic, parameters = self.traffic.take(), dict(model.named_parameters())
        learning = [p for p in parameters.values() if p.requires_grad]
        moments = [m for entry in self.trainer.optimizer.optimizer.state.values() for m in entry.values() if m.ndim]
        if isinstance(self.trainer.model_wrapped, DistributedDataParallel):
            logged = self.trainer.model_wrapped._get_ddp_logging_data()
            traffic = {"reduced": logged["total_parameter_size_bytes"]}
        self.rows.append(
            {
                "learning": sum(p.nbytes for p in learning),
                "moments": sum(local(m).nbytes for m in moments),
                "plain": [n for n, p in parameters.items() if not isinstance(p, DTensor)],
                "moved": [n for n, before in self.frozen.items() if not torch.equal(local(parameters[n]), before)],
                "heads": self.heads,
                "wrong_gradients": self.wrong_gradients,
                **traffic,
            }
        )


def run(job: Job, output_dir: str, traffic: Traffic | None = None):
    settings = dict(job.settings)
    if job.wrapper != "configured":
        os.environ["ACCELERATE_USE_FSDP"] = "false"  # where accelerate notes that the job before was one of FSDP
    if job.wrapper in ("sharded", "full"):
        state_dict_type = f"{job.wrapper.upper()}_STATE_DICT"
        settings |= {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": state_dict_type}}
    clips = Clips()
    trainer = make_trainer(job.method, f"{output_dir}/{job.name}", clips, diagnostics_steps=0, **settings)
    trainer.add_callback(Save(job.save_at))
    watch = Watch(trainer, traffic)
    if job.watch:
        trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=job.resume and f"{output_dir}/{job.resume}")
    networks = {"model": trainer.model, "teacher": trainer.teacher.network}
    states = {
        part: {name: whole(p).clone() for name, p in network.named_parameters()}
        for part, network in networks.items()
        if network is not None
    }
    logs = step_logs(trainer)
    rank = trainer.args.process_index
    report = dict(
        wrapper=type(trainer.model_wrapped).__name__,
        digest=digest(states),
        losses=[row["loss"] for row in logs],
        grad_norms=[row["grad_norm"] for row in logs],
        num_frozen=[row["num_frozen"] for row in logs],
        read=clips.read,
        rows=watch.rows,
    )
    Path(f"{output_dir}/{job.name}-{rank}.json").write_text(json.dumps(report))
    if job.keep:
        torch.save(states, f"{output_dir}/{job.name}-{rank}.pt")
    if job.save_at:
        trainer.save_model(f"{output_dir}/{job.name}/end")


def allow_fsdp_on_cpu():
    """accelerate turns only launches on accelerators into FSDP; this does the same for those on the CPU."""
    original = accelerate.state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = init


def main(output_dir: str, jobs: str):
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    traffic = Traffic()
    for fields in json.loads(jobs):
        run(Job(**fields), output_dir, traffic)


if __name__ == "__main__":
    run_and_exit(lambda: main(*sys.argv[1:]))
