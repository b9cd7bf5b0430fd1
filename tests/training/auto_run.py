"""A run of sixty steps that decides itself when to freeze, in this process, which may be one of several."""

import hashlib
import json
from pathlib import Path

from toy_methods import TINY, weights
from toy_run import allow_fsdp_on_cpu
from toy_trainer import make_trainer

from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.training import AutoFreezing, mae
from layerlock_hf.training.settling import SettlingRule


# The weights of so small a model hardly move: by these limits its layers settle at different times
RULE = SettlingRule(max_drift=0.05, max_growth=0.5)
PLAN = AutoFreezing(counts=(1, 2, 3), first_step=6, last_step=50, min_interval=3, every=3, rule=RULE)
SETTINGS = {"max_steps": 60, "learning_rate": 3e-3, "weight_decay": 0.0, "diagnostics_steps": 0}


def auto_trainer(output_dir, freezing=PLAN, **settings):
    config = LayerLockViTConfig.from_preset("tiny", **TINY)
    return make_trainer(config, output_dir, stages=mae(6), freezing=freezing, **{**SETTINGS, **settings})


def freezings(trainer) -> list[tuple[int, int]]:
    """(step, number of frozen layers) of each."""
    return [(stage.start, stage.num_frozen) for stage in trainer.stages[1:]]


def run(folder: str, resume: str | None, settings: dict):
    """Train, from a checkpoint if one is given; freezings and a digest of the weights go to `FOLDER/rank-N.json`."""
    allow_fsdp_on_cpu()
    trainer = auto_trainer(folder, **settings)
    trainer.train(resume_from_checkpoint=resume)
    sha = hashlib.sha256()
    for tensor in weights(trainer.model).values():
        sha.update((tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).numpy().tobytes())
    report = {"freezings": freezings(trainer), "digest": sha.hexdigest()}
    Path(folder, f"rank-{trainer.args.process_index}.json").write_text(json.dumps(report))
