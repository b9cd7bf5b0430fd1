"""The processes of a run: how they find each other, how long they wait, and how they part."""

import os
import uuid
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object


def start_processes(use_cpu: bool, backend: str | None, timeout_s: float):
    """Connect the processes of this launch, if there are several.

    Done before Transformers would, which waits 30 minutes for a hung process on CPU whatever `ddp_timeout` says, and
    which meets the addresses of dead processes after a restart by torchrun.

    Raises:
        ValueError: if the launch was asked for several processes and started one.
    """
    environment = os.environ
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "WORLD_SIZE" not in environment:
        if "MASTER_PORT" in environment:
            raise ValueError(
                "accelerate launch --cpu starts one process, however many are asked for: use "
                "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N ..., or torchrun"
            )
    if int(environment.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    timeout, options = timedelta(seconds=timeout_s), {}
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and environment.get("GROUP_WORLD_SIZE") == "1":
        # torchrun keeps one store for all its attempts, and in it the addresses of the last (pytorch#135712).
        # With several nodes the attempts are counted on each node apart, and no common name can be made of them.
        store = dist.TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timeout=timeout)
        options = {
            "store": dist.PrefixStore(f"attempt-{environment['TORCHELASTIC_RESTART_COUNT']}", store),
            "rank": int(environment["RANK"]),
            "world_size": int(environment["WORLD_SIZE"]),
        }
    PartialState(cpu=use_cpu, backend=backend, timeout=timeout, **options)


def end_processes():
    """Part in good order. Without this about one launch in twenty ends with SIGABRT, because threads of the process
    group outlive the interpreter."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_shared_folder(folder: str | Path):
    """Raise `ValueError` on all processes unless all see the files that the main process writes into `folder`."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == int(os.environ.get("WORLD_SIZE", 1)):
        return  # one node
    name = [uuid.uuid4().hex]
    broadcast_object_list(name)
    probe, state = Path(folder) / f".{name[0]}", PartialState()
    if state.is_main_process:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.touch()
    state.wait_for_everyone()
    blind = [rank for rank, sees in enumerate(gather_object([probe.exists()])) if not sees]
    if state.is_main_process:
        probe.unlink()
    if blind:
        raise ValueError(
            f"output_dir: processes {blind} do not see what process 0 writes to {folder}: put it on a file system "
            "that all nodes share, or set save_on_each_node"
        )
