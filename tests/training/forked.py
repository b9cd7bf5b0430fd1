"""Several processes of one run, started in a fraction of a second: forked from a server that has imported torch."""

import atexit
import gc
import multiprocessing
import os
import socket
import time

import torch


_CONTEXT = multiprocessing.get_context("forkserver")
# Of this folder nothing: the server of Python 3.11 does not know sys.path (gh-117378), and says nothing
_CONTEXT.set_forkserver_preload(["layerlock_hf.data", "layerlock_hf.training"])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(world_size: int, target, *arguments, num_nodes: int = 1) -> list[multiprocessing.Process]:
    """`target(*arguments)` in processes that know of each other as those of torchrun do."""
    port = free_port()
    processes = [
        _CONTEXT.Process(target=_run, args=(rank, world_size, num_nodes, port, target, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
        atexit.register(process.kill)  # pytest would wait for one that a failed test left stopped
    return processes


def finish(processes, timeout_s: float = 120) -> list[int]:
    """Exit statuses; a process that is still there after the timeout is killed, and its status is None."""
    end = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return statuses


def _run(rank, world_size, num_nodes, port, target, arguments):
    gc.freeze()  # what the server has imported, so that `gc.collect`, with which every training ends, is quick
    os.environ |= {
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    if world_size > 1:
        local = world_size // num_nodes
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(rank % local),
            "LOCAL_WORLD_SIZE": str(local),
            "GROUP_WORLD_SIZE": str(num_nodes),
        }
    else:
        del os.environ["MASTER_PORT"]
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for data workers, which else outlive a killed parent
    target(*arguments)
