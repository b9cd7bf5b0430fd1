"""Training steps of a schedule, stage by stage, on one batch that lies where the model is: what `savings.py` times on
the CPU, and `gpu_check.py` on a GPU."""

import time
from dataclasses import dataclass

import torch

from layerlock_hf import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.models import Stage
from layerlock_hf.training import FreezeSchedule, locked, mae, step_flops


@dataclass
class Case:
    """A schedule on a model."""

    title: str
    config: LayerLockViTConfig
    stages: list[Stage]
    num_context: int

    def flops(self, stage: Stage) -> int:
        """Counted, per clip."""
        return step_flops(self.config, stage, [(self.num_context, None)])


def layerlock_case(config: LayerLockViTConfig, patch_fraction: float) -> Case:
    """MAE with 95% masked, then four freezings up to the layers that decode; latents of a share of the patches."""
    depth = config.num_hidden_layers
    schedule = FreezeSchedule(1, 1, (depth - config.num_decoder_layers) // 4, num_freezes=4)
    stages = locked(mae(depth), schedule, patch_fraction=patch_fraction)
    share = "all patches" if patch_fraction == 1 else f"{patch_fraction:.0%} of the patches"
    return Case(f"LayerLock, latents of {share}", config, stages, round(0.05 * config.num_tokens))


def now(device: torch.device) -> float:
    """Seconds on a clock, when all that the device was told to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Steps:
    """Training steps of a case in any of its stages, on one batch; on equal devices they start from equal weights."""

    def __init__(self, case: Case, batch_size: int, device: torch.device | str = "cpu", bf16: bool = False):
        torch.manual_seed(0)
        self.device, self.bf16 = torch.device(device), bf16
        config = case.config
        size = (config.num_channels, config.image_size, config.image_size)
        with self.device:
            self.model = LayerLockViTForPretraining(config)
            self.video = torch.rand(batch_size, config.num_frames, *size)
            self.context_ids = torch.rand(batch_size, config.num_tokens).argsort(dim=1)[:, : case.num_context]
            self.target_ids = torch.rand(batch_size, config.num_tokens).argsort(dim=1)
        self.optimizers = {}

    def learning(self, stage: Stage) -> list[torch.nn.Parameter]:
        """Freeze; the parameters that still learn."""
        self.model.freeze_for(stage)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def loss(self, stage: Stage) -> torch.Tensor:
        """The forward pass, its targets included."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(self.video, self.context_ids, self.target_ids, stage=stage).loss

    def run(self, stage: Stage) -> dict:
        """One step: its seconds, and the bytes of gradients (which DDP all-reduces, and nothing else) and moments."""
        learning = self.learning(stage)
        if stage not in self.optimizers:
            self.optimizers[stage] = torch.optim.AdamW(learning, lr=1e-4, fused=True)
        optimizer = self.optimizers[stage]
        start = now(self.device)
        self.loss(stage).backward()
        optimizer.step()
        seconds = now(self.device) - start
        gradients = sum(parameter.grad.nbytes for parameter in self.model.parameters() if parameter.grad is not None)
        moments = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
        self.model.zero_grad()
        return {"seconds": seconds, "all_reduced_bytes": gradients, "optimizer_bytes": moments}
