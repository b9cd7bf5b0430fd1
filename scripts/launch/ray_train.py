"""The machines of a Ray cluster, or this one alone: Ray Train runs scripts/pretrain.py in each of its workers, and in
all of them again when one has died, from the newest complete checkpoint on. With `pip install "ray[train]"`:

python scripts/launch/ray_train.py --num_workers 8 --config scripts/recipes/4ds-g-layerlock.yaml \\
    --train_data VIDEOS --output_dir OUT --per_device_train_batch_size 32
"""

import argparse
import os
import sys
from pathlib import Path


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What Ray must know, and the arguments of pretrain.py."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--num_workers", type=int, required=True, help="Processes; each has a GPU.")
    parser.add_argument("--on_cpu", action="store_true", help="None has a GPU.")
    parser.add_argument("--max_failures", type=int, default=10, help="Of all causes: wrong arguments are among them.")
    parser.add_argument("--ddp_timeout", type=int, default=1800, help="Seconds until a worker that hangs is given up.")
    ray, rest = parser.parse_known_args(arguments)
    # Ray connects the processes before pretrain.py has read its recipe, which can therefore not set the timeout
    rest += ["--resume_from_checkpoint", "auto", "--ddp_timeout", str(ray.ddp_timeout)]
    return ray, rest + ["--use_cpu", "true"] * ray.on_cpu


def work(folder: str, scripts: str, arguments: list[str]):
    os.chdir(folder)  # Ray has gone to one of its own
    sys.path.insert(0, scripts)
    from pretrain import main

    main(arguments)


if __name__ == "__main__":
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray, rest = parse(sys.argv[1:])
    scripts = str(Path(__file__).resolve().parents[1])
    TorchTrainer(
        lambda job: work(**job),
        train_loop_config={"folder": os.getcwd(), "scripts": scripts, "arguments": rest},
        torch_config=TorchConfig(timeout_s=ray.ddp_timeout),
        scaling_config=ScalingConfig(num_workers=ray.num_workers, use_gpu=not ray.on_cpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=ray.max_failures)),
    ).fit()
