"""A child process for decoding, so that a video that crashes or hangs it does not harm the run."""

import collections
import contextlib
import gc
import itertools
import mmap
import multiprocessing
import os
import pickle
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import torch

from ..utils.parents import end_with
from .clips import DecodingError
from .timing import count, is_measured, measured, timed


# One death may be a bug that another try does not meet: two of the same kind are the video's doing
MAX_DEATHS = 2
# Being killed is the system's doing, which is short of memory for a while: seconds before each further try
PAUSES = (0.1, 1.0, 4.0)
# Seconds after the limit until a child is left alone that no signal ends, such as one that reads from a dead disk
GRACE = 1.0
MAX_MEMORY_GIB = 16  # a video can claim frames of any size
# Of the memory in which a child lays down arrays. What a call does not need takes no memory
SHARED_MIB = 64


class DecoderLost(DecodingError):
    """A video hangs or crashes the decoding process; trying again would cost as much again."""


class Isolated:
    """A function that runs in a child process, forked at the first call and again whenever the child has died.

    The child sees everything as it was when forked, and ends with this process. Calls do not overlap.

    Args:
        function: what to call. Arguments and results are pickled, but for the contents of NumPy arrays in a result,
            which pass through shared memory.
        timeout: seconds that a call may take. Its memory is limited to `MAX_MEMORY_GIB` (on Linux).
    """

    def __init__(self, function: Callable, timeout: float):
        self.function = function
        self.timeout = timeout
        self._owner, self._child, self._pipe, self._shared = -1, -1, None, None

    def __call__(self, *arguments):
        """
        Raises:
            DecodingError: as the function does; also if the child is killed time and again (of kind "memory").
            DecoderLost: if the call takes too long, or the child dies of it.
            RuntimeError: with the traceback of any other error of the function.
        """
        with timed("hand over"):
            kind, value, seconds = self._answer(arguments)
            count(seconds)
        if kind == "timeout":
            raise DecoderLost(f"decoding takes more than {self.timeout:g} seconds (decode_timeout)", "timeout")
        if kind == "decoding error":
            raise DecodingError(*value)
        if kind == "error":
            raise RuntimeError(f"in the process that decodes: {value}")
        return value

    def __del__(self):
        if self._owner == os.getpid():
            self._kill()  # the pipe closes itself; in a cycle of references it may have done so before

    def __getstate__(self) -> dict:
        return {**vars(self), "_owner": -1, "_child": -1, "_pipe": None, "_shared": None}

    def _answer(self, arguments: tuple) -> tuple[str, object, dict[str, float]]:
        """The answer of a child that lives to give it, as `_ask` has it."""
        deaths = collections.Counter()  # by signal
        while True:
            try:
                return self._ask(arguments)
            except (EOFError, ConnectionError):
                cause = self._end()
            deaths[cause] += 1
            if cause == signal.SIGALRM:
                return "timeout", None, {}
            if cause == signal.SIGKILL and deaths[cause] > len(PAUSES):
                reason = "the process that decodes it is killed, as the system does when memory runs out"
                raise DecodingError(reason, "memory")
            if cause == signal.SIGKILL:
                time.sleep(PAUSES[deaths[cause] - 1])
            elif deaths[cause] == MAX_DEATHS:
                name = signal.strsignal(cause) if cause else "it exits"
                raise DecoderLost(f"the process that decodes it dies: {name}", "crash")

    def _ask(self, arguments: tuple) -> tuple[str, object, dict[str, float]]:
        """The kind of the answer, the answer, and the seconds of its steps if this process asks for them."""
        if self._owner != os.getpid():  # so far there is none, or this process was itself forked since
            self._start()
        try:
            self._pipe.send_bytes(pickle.dumps((arguments, is_measured())))
            if self._pipe.poll(self.timeout + GRACE):
                return _unpack(self._pipe.recv_bytes(), self._shared)
        except (EOFError, ConnectionError):
            raise
        except BaseException:  # such as KeyboardInterrupt: the next call must not get the answer to this one
            self._end()
            raise
        self._end(wait=False)
        return "timeout", None, {}

    def _start(self):
        ours, theirs = multiprocessing.Pipe()
        shared = mmap.mmap(-1, SHARED_MIB * 1024**2)  # of no file, hence neither in /dev/shm nor left behind
        with warnings.catch_warnings():
            # From Python 3.12 on, about the threads of this process. The child uses none, like a DataLoader's worker.
            warnings.simplefilter("ignore", DeprecationWarning)
            owner, child = os.getpid(), os.fork()
        if child == 0:
            # A codec of the parent, freed by the garbage collector here, would wait for threads that the fork has not
            # copied
            gc.freeze()
            end_with(owner)
            ours.close()
            _serve(theirs, shared, self.function, self.timeout)
        theirs.close()
        self._owner, self._child, self._pipe, self._shared = os.getpid(), child, ours, shared

    def _end(self, wait: bool = True) -> int:
        """As `_kill`, and let go of the pipe."""
        self._pipe.close()
        return self._kill(wait)

    def _kill(self, wait: bool = True) -> int:
        """Kill the child, if it is not dead; the number of the signal that it died of, 0 if of none."""
        self._owner = -1
        try:
            os.kill(self._child, signal.SIGKILL)
            _, status = os.waitpid(self._child, 0 if wait else os.WNOHANG)
        except (ChildProcessError, ProcessLookupError):  # where SIGCHLD is ignored, the system forgets the dead
            return 0
        return os.WTERMSIG(status)


def _serve(pipe: Connection, shared: mmap.mmap, function: Callable, timeout: float) -> NoReturn:
    """The life of the child: answer calls until the other end of the pipe is closed."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is for the parent to end, and the child ends with it
        for number in (signal.SIGALRM, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would be that of the whole run, at every crash
        _confine_memory()
        torch.set_num_threads(1)  # those of the parent did not survive the fork
        while True:
            arguments, is_asked = pickle.loads(pipe.recv_bytes())
            # Without a handler in Python the alarm ends the process even in the middle of a call into C
            signal.setitimer(signal.ITIMER_REAL, timeout)
            try:
                with measured(is_asked) as seconds:
                    answer = "result", function(*arguments)
            except DecodingError as error:
                answer = "decoding error", (str(error), error.kind)
            except Exception as error:
                # PyTorch's is a RuntimeError
                if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
                    answer = "decoding error", (f"needs more than {MAX_MEMORY_GIB} GiB of memory", "memory")
                else:
                    answer = "error", traceback.format_exc()
            answer = _pack((*answer, seconds), shared)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send_bytes(answer)
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # nothing of the parent's is cleaned up here


def _pack(answer: object, shared: mmap.mmap) -> bytes:
    """Pickle an answer, with the contents of its arrays laid down in the shared memory where they fit."""
    buffers = []
    pickled = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    contents = [buffer.raw() for buffer in buffers]
    if sum(content.nbytes for content in contents) > len(shared):
        return pickle.dumps((pickle.dumps(answer, protocol=5), []))
    shared.seek(0)
    for content in contents:
        shared.write(content)
    return pickle.dumps((pickled, [content.nbytes for content in contents]))


def _unpack(message: bytes, shared: mmap.mmap) -> object:
    """The answer; its arrays are copies, because the next answer takes the place of this one in the shared memory."""
    pickled, sizes = pickle.loads(message)
    with memoryview(shared) as view:
        ends = itertools.accumulate(sizes)
        buffers = [bytearray(view[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    return pickle.loads(pickled, buffers=buffers)


def _confine_memory():
    """On Linux: limit the memory that this process adds to its own, and let it go first where there is none left."""
    folder = Path("/proc/self")
    if (folder / "oom_score_adj").exists():
        with contextlib.suppress(OSError):  # /proc may be read-only
            (folder / "oom_score_adj").write_text("1000")
        used = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("VmData:"))
        limit = int(int(used.split()[1]) * 1024 + MAX_MEMORY_GIB * 1024**3)
        now, most = resource.getrlimit(resource.RLIMIT_DATA)
        if now == resource.RLIM_INFINITY or limit < now:  # never wider than it was
            resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
