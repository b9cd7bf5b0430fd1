"""The processes of a run: how they find each other, how long they wait, and how they part."""

import atexit
import contextlib
import copy
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.context import BaseContext
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from .parents import end_without_parent


# What launchers set: torchrun and accelerate, Ray
LAUNCHED = {"TORCHELASTIC_RUN_ID", "RAY_JOB_ID"}
# What data workers leave to their parent. Not on macOS, where they could not tell their parent's SIGTERM from others
SHIELDED_FROM = {signal.SIGTERM, signal.SIGINT} if hasattr(signal, "sigwaitinfo") else set()
# In which threads of the process group finish with what the last collective left them. A fork while one of them
# registers with the interpreter hangs the child (CPython 3.11; seen in 1 of 20 launches)
SETTLING_S = 0.05
END_S = 5.0  # that a process of ours has to end in, once it is told to


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
    if LAUNCHED & environment.keys():  # by the parent, and not from a shell, which may go
        end_without_parent()
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


def run_and_exit(main: Callable[[], None]):
    """Run a program and end this process with its exit status, without taking the interpreter down if there are other
    processes.

    Threads of the process group outlive the interpreter, and sometimes end the process with SIGABRT: 2 of 40 launches
    of two gloo processes after all work was done, 2 of 100 with `destroy_process_group`. To torchrun that is failure.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        try:
            main()
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None
        return
    status = 0
    try:
        main()
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    end_children()
    # What the interpreter would do before it goes, as in multiprocessing.Process
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def end_children():
    """End the daemons that `multiprocessing` started, which at exit would wait for one that hangs for ever."""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    for child in children:
        child.terminate()
    end = time.monotonic() + END_S
    for child in children:
        child.join(max(0, end - time.monotonic()))
        if child.exitcode is None:
            child.kill()


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
            f"output_dir must be on a file system that all nodes share, but processes {blind} do not see what "
            f"process 0 writes to {folder}: choose another folder"
        )


@contextlib.contextmanager
def raised_together(kind: type[ValueError] = ValueError) -> Iterator[None]:
    """A `ValueError` that one process raises within is raised by all: the others would wait for it for ever.

    Args:
        kind: as what it is raised.
    """
    error = None
    try:
        yield
    except ValueError as caught:
        error = caught
    messages = [message for message in gather_object([None if error is None else str(error)]) if message is not None]
    if messages:
        raise kind(messages[0]) from error


class _Shielded:
    """A process that starts with SIGTERM and SIGINT blocked, which what it starts inherits."""

    def start(self):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED_FROM)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# By name and in a module, because a process that is spawned is pickled
class _Forked(_Shielded, multiprocessing.get_context("fork").Process):
    def start(self):
        if dist.is_initialized():
            time.sleep(SETTLING_S)
        super().start()


class _Spawned(_Shielded, multiprocessing.get_context("spawn").Process):
    pass


class _ForkServed(_Shielded, multiprocessing.get_context("forkserver").Process):
    pass


def shielded(context: BaseContext | None) -> BaseContext:
    """A multiprocessing context like this one (None: the default) for data workers that `init_worker` is called in.

    A worker that is spawned needs seconds until it gets there, in which the signals must not end it either.
    """
    method = (context or multiprocessing).get_start_method()
    shielded = copy.copy(multiprocessing.get_context(method))
    shielded.Process = {"fork": _Forked, "spawn": _Spawned, "forkserver": _ForkServed}[method]
    return shielded


def init_worker(init: Callable[[int], None] | None, worker_id: int):
    """Make a data worker leave SIGTERM and SIGINT to its parent, and call the worker's own `init`.

    Schedulers and terminals send them to all processes of a job. PyTorch's workers would die of it, and take the run
    with them before it has saved.
    """
    if SHIELDED_FROM:
        signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED_FROM)
        parent = multiprocessing.parent_process().pid  # os.getppid() may be a fork server
        threading.Thread(target=_exit_when_told_by, args=(parent,), daemon=True).start()
    if init is not None:
        init(worker_id)


def _exit_when_told_by(parent: int):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
