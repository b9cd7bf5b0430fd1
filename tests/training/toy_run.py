"""Run toy methods in this process, which may be one of several: prints a line of JSON per method.

python toy_run.py OUTPUT_DIR BATCH_SIZE_PER_DEVICE METHOD...
"""

import json
import sys

import torch
from toy_methods import make_trainer, step_logs, weights

from layerlock_hf.training.processes import run_and_exit


def main(output_dir: str, batch_size: str, *names: str):
    torch.set_num_threads(1)
    for name in names:
        trainer = make_trainer(
            name,
            f"{output_dir}/{name}",
            max_steps=8,
            per_device_train_batch_size=int(batch_size),
            global_batch_size=4,
            adam_epsilon=1e-3,  # gradients that are nothing but rounding must not become steps
            diagnostics_steps=0,
        )
        trainer.train()
        states = {"model": weights(trainer.model)}
        if trainer.teacher is not None:
            states["teacher"] = weights(trainer.teacher)
        torch.save(states, f"{output_dir}/{name}-{trainer.args.process_index}.pt")
        rows = [(row["loss"], row["grad_norm"], row["num_frozen"]) for row in step_logs(trainer)]
        kind = type(trainer.model_wrapped).__name__
        line = {"name": name, "rank": trainer.args.process_index, "wrapper": kind, "rows": rows}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run_and_exit(lambda: main(*sys.argv[1:]))
