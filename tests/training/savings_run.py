"""What freezing saves between processes: prints a line of JSON per optimizer step.

python savings_run.py OUTPUT_DIR
"""

import gc
import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from toy_methods import TINY, Clips, make_trainer, step_logs
from transformers import TrainerCallback, set_seed

from layerlock_hf.data import PretrainingCollator, RandomMask
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments, Objective, Pixels, Stage
from layerlock_hf.utils.processes import run_and_exit


def say(**line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def num_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def agree(tensors) -> bool:
    """Whether all processes hold the same tensors, to the bit."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().numpy().tobytes())
    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, sha.hexdigest())
    return len(set(digests)) == 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class WatchCallback(TrainerCallback):
    """Counts what is all-reduced and what stays. Added last, it sees each switch done."""

    def __init__(self, name, trainer):
        self.name, self.trainer = name, trainer
        trainer.add_callback(self)

    def reduce(self, state, bucket):
        self.reduced += num_bytes([bucket.buffer()])
        if bucket.is_last():
            self.syncs.append(self.reduced)
            self.reduced = 0
        return allreduce_hook(None, bucket)

    def on_step_begin(self, args, state, control, **kwargs):
        self.reduced, self.syncs = 0, []
        # Copies of what learns would hide what a switch leaves in memory
        named = self.trainer.model.named_parameters()
        self.before = {name: parameter.clone() for name, parameter in named if not parameter.requires_grad}
        self.is_new = self.trainer._wrapper_is_new
        if self.is_new:
            self.trainer.model_wrapped.register_comm_hook(None, self.reduce)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        learning = [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]
        self.line = {
            "gradients_agree": agree([parameter.grad for parameter in learning]),
            "learning": num_bytes(learning),
            "stale": sum(p.grad is not None and not p.requires_grad for p in self.trainer.model.parameters()),
        }

    def on_step_end(self, args, state, control, **kwargs):
        model, optimizer = self.trainer.model, self.trainer.optimizer
        moved = [n for n, p in model.named_parameters() if not p.requires_grad and not torch.equal(p, self.before[n])]
        self.before = None
        moments = [v for entry in optimizer.state.values() for key, v in entry.items() if key != "step"]
        say(
            run=self.name,
            rank=args.process_index,
            step=state.global_step,
            num_frozen=self.trainer.stage.num_frozen,
            is_new=self.is_new,
            syncs=self.syncs,
            moved=moved,
            moments=num_bytes(moments),
            parameters_agree=agree(model.parameters()),
            wrappers=sum(type(thing) is DistributedDataParallel for thing in gc.get_objects()),
            resident=resident_bytes(),
            model=num_bytes(model.parameters()),
            **self.line,
        )


def make_large_trainer(folder) -> LayerLockTrainer:
    """145 MiB and eight switches that freeze nothing, so that nothing is given back either."""
    set_seed(0)
    sizes = {"hidden_size": 768, "num_hidden_layers": 5, "num_attention_heads": 12, "intermediate_size": 3072}
    config = LayerLockViTConfig.from_preset("tiny", **{**TINY, **sizes})
    stages = [Stage(n + (n > 0), 0, (Objective(5, Pixels(), patch_fraction=1 - n / 20),)) for n in range(9)]
    args = LayerLockTrainingArguments(
        output_dir=folder,
        max_steps=10,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        diagnostics_steps=0,
        switch_warmup_steps=0,
        disable_tqdm=True,
    )
    model = LayerLockViTForPretraining(config)
    return LayerLockTrainer(model, args, stages, Clips(), PretrainingCollator(config.grid_size, RandomMask(0.75), 0))


def main(folder: str):
    torch.set_num_threads(1)
    large = make_large_trainer(folder)
    WatchCallback("large", large)
    large.train()
    del large
    toy = {"per_device_train_batch_size": 2, "diagnostics_steps": 0}
    for accumulation in (1, 2):
        trainer = make_trainer("layerlock", folder, **toy, gradient_accumulation_steps=accumulation)
        WatchCallback(f"accumulation {accumulation}", trainer)
        trainer.train()
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 4}
    runs = {"bf16": {"bf16": True}, "halved": {"bf16": True, "frozen_dtype": "bfloat16"}}
    runs |= {"eager": {"max_steps": 4}, "compiled": compiled}
    for name, settings in runs.items():
        trainer = make_trainer("layerlock", folder, **toy, **settings)
        trainer.train()
        rows = [(row["loss"], row["grad_norm"]) for row in step_logs(trainer)]
        kind = type(trainer.model_wrapped).__name__
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        say(run=name, rank=trainer.args.process_index, rows=rows, wrapper=kind, graphs=graphs)


if __name__ == "__main__":
    run_and_exit(lambda: main(*sys.argv[1:]))
