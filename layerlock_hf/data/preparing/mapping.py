"""A function over many tasks in several processes, which end with this one."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator

from ...utils.parents import end_with


# Sent to all processes by a terminal or a scheduler
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TASKS_AHEAD = 4  # per process, so that none waits while results are used


def map_in_processes(function: Callable, tasks: Iterable, num_workers: int) -> Iterator:
    """The results of `function(task)`, in the order in which they come.

    The processes are forked at the first result asked for, and killed when the iterator is closed or this process
    dies (on Linux). SIGINT and SIGTERM are for this process to answer.

    Raises:
        concurrent.futures.process.BrokenProcessPool: if a process dies.
    """
    others = set(multiprocessing.active_children())
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("fork"), _start, (function, os.getpid())
    )
    pending = set()
    try:
        for task in tasks:
            with _forking():
                pending.add(executor.submit(_call, task))
            if len(pending) >= TASKS_AHEAD * num_workers:
                done, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        for future in concurrent.futures.as_completed(pending):
            yield future.result()
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Answer signals afterwards: an exception that a handler raises in a hook of the fork is lost, and the signal too.

    Blocking them would not do, because any other thread may take them for the main one.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone runs handlers
        yield
        return
    caught = []
    handlers = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in SIGNALS}
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on, about the threads of this process; see `Isolated`
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in caught:
            signal.raise_signal(number)


def _start(function: Callable, parent: int):
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with(parent)
    global _function
    _function = function


def _call(task):
    return _function(task)
