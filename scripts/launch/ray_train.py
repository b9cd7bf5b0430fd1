"""The machines of a Ray cluster, or this one alone: Ray Train starts `layerlock pretrain` from each of its workers,
and all of them again when one has died, from the newest complete checkpoint on. With `pip install "ray[train]"`:

python scripts/launch/ray_train.py --num_workers 8 --config 4ds-g-layerlock \\
    --train_data VIDEOS --output_dir OUT --per_device_train_batch_size 32
"""

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path


PRETRAIN = Path(__file__).resolve().parents[1] / "pretrain.py"


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What Ray must know, and the arguments of `layerlock pretrain`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--num_workers", type=int, required=True, help="Processes; each has a GPU.")
    parser.add_argument("--on_cpu", action="store_true", help="None has a GPU.")
    parser.add_argument("--max_failures", type=int, default=10, help="Of all causes: wrong arguments are among them.")
    ray, rest = parser.parse_known_args(arguments)
    for name, least in (("num_workers", 1), ("max_failures", 0)):
        if getattr(ray, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(ray, name)}")
    if "--config" not in rest and not any(argument.startswith("--config=") for argument in rest):
        parser.error("--config is missing: pretrain.py needs a recipe")
    rest += ["--resume_from_checkpoint", "auto"]
    return ray, rest + ["--use_cpu", "true"] * ray.on_cpu


def work(folder: str, arguments: list[str]):
    """Run `layerlock pretrain` in a process and a session of its own, where signals and groups of processes are not
    Ray's: it saves on SIGTERM, and when this worker has gone."""
    import torch.distributed as dist

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = [probe.getsockname()[1]]
    dist.broadcast_object_list(port)  # that of the first, beside the port that Ray's workers themselves use
    command = [sys.executable, str(PRETRAIN), *arguments]
    environment = {**os.environ, "MASTER_PORT": str(port[0])}
    # In the folder that the user was in: Ray has gone to one of its own
    status = subprocess.run(command, cwd=folder, env=environment, start_new_session=True).returncode
    if status:
        raise RuntimeError(f"pretrain.py ended with status {status}")


if __name__ == "__main__":
    ray, rest = parse(sys.argv[1:])
    # Else Ray kills what a worker has started before it has saved. A cluster that runs already needs it at `ray start`
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "false")

    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise SystemExit(f'error: Ray Train is not installed ({error}): pip install "ray[train]"') from None

    TorchTrainer(
        lambda job: work(**job),
        train_loop_config={"folder": os.getcwd(), "arguments": rest},
        torch_config=TorchConfig(backend="gloo"),  # over which the workers agree on a port and no more
        scaling_config=ScalingConfig(num_workers=ray.num_workers, use_gpu=not ray.on_cpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=ray.max_failures)),
    ).fit()
