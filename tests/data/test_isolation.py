import ctypes
import gc
import io
import os
import signal
import threading
import time

import av
import numpy as np
import pytest
import torch

from layerlock_hf.data import DecodingError, isolation
from layerlock_hf.data.isolation import MAX_MEMORY_GIB, SHARED_MIB, DecoderLost, Isolated


LIMIT = 1.0  # seconds


def hang_in_c():
    ctypes.PyDLL(None).pause()  # holds the lock of the interpreter: no handler written in Python would ever run


def act(what):
    if what == "hang":
        time.sleep(1000)
    if what == "hang in C":
        hang_in_c()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(3)
    if what == "bad":
        raise DecodingError("no frames", "unsupported")
    if what == "allocate":
        return len(bytearray((MAX_MEMORY_GIB + 1) * 1024**3))
    if what == "allocate a tensor":
        return torch.empty((MAX_MEMORY_GIB + 1) * 1024**3, dtype=torch.uint8).nbytes
    if what == "bug":
        raise KeyError("culprit")
    if isinstance(what, tuple):
        folder, times, number = what
        died = len(os.listdir(folder))
        if died < times:
            (folder / str(died)).touch()
            os.kill(os.getpid(), number)
    if what == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    return os.getpid(), what


@pytest.fixture
def isolated():
    return Isolated(act, LIMIT)


def test_one_child_answers_all_calls(isolated):
    child, answer = isolated(1)
    assert child != os.getpid() and answer == 1
    assert [isolated(n) for n in range(3)] == [(child, n) for n in range(3)]


@pytest.mark.parametrize("what", ["hang", "hang in C"])
def test_a_call_that_hangs_is_given_up(isolated, what):
    isolated(0)
    start = time.monotonic()
    with pytest.raises(DecoderLost, match=r"more than 1 seconds \(decode_timeout\)"):
        isolated(what)
    assert LIMIT <= time.monotonic() - start < LIMIT + 3
    assert isolated("next")[1] == "next"


@pytest.mark.parametrize("what, cause", [("crash", "Segmentation fault"), ("exit", "it exits")])
def test_a_call_that_kills_the_child_is_named(isolated, what, cause):
    with pytest.raises(DecoderLost, match=cause):
        isolated(what)
    assert isolated("next")[1] == "next"


def test_a_child_that_others_kill_is_replaced(isolated):
    child, _ = isolated(0)
    os.kill(child, signal.SIGKILL)
    other, answer = isolated(1)
    assert answer == 1 and other != child


@pytest.mark.parametrize("number, times", [(signal.SIGKILL, 3), (signal.SIGSEGV, 1), (signal.SIGTERM, 9)])
def test_a_child_that_dies_for_a_while_is_replaced(isolated, tmp_path, monkeypatch, number, times):
    monkeypatch.setattr(isolation, "PAUSES", (0.0, 0.01, 0.02))
    what = (tmp_path, times, number)  # SIGTERM it ignores
    assert isolated(what)[1] == what


def test_being_killed_is_no_fault_of_the_video(isolated, tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "PAUSES", (0.0, 0.01, 0.02))
    with pytest.raises(DecodingError, match="killed, as the system does when memory runs out") as caught:
        isolated((tmp_path, 100, signal.SIGKILL))
    assert not isinstance(caught.value, DecoderLost) and caught.value.kind == "memory"
    assert len(os.listdir(tmp_path)) == 4
    assert isolated("next")[1] == "next"


def test_arrays_are_copies_of_any_size():
    shapes = [(3, 5), (0, 4), (SHARED_MIB, 1024, 1024), (SHARED_MIB + 1, 1024, 1024), (2,)]
    isolated = Isolated(lambda value: [(np.full(shape, value, np.uint8), "x") for shape in shapes[value - 1 :]], 10)
    answers = [isolated(value) for value in (1, 3, 4, 5)]
    for value, answer in zip((1, 3, 4, 5), answers, strict=True):
        assert [(array.shape, text) for array, text in answer] == [(shape, "x") for shape in shapes[value - 1 :]]
        for array, _ in answer:
            assert (array == value).all() and array.flags.writeable
    answers[0][0][0][:] = 9
    assert (isolated(5)[0][0] == 5).all()


def test_kinds_of_errors(isolated):
    for what, kind in (("hang", "timeout"), ("crash", "crash"), ("bad", "unsupported"), ("allocate", "memory")):
        with pytest.raises(DecodingError) as caught:
            isolated(what)
        assert caught.value.kind == kind


def test_errors_of_the_function(isolated):
    child, _ = isolated(0)
    with pytest.raises(DecodingError, match="^no frames$"):
        isolated("bad")
    for what in ("allocate", "allocate a tensor"):
        with pytest.raises(DecodingError, match="needs more than 16 GiB of memory"):
            isolated(what)
    with pytest.raises(RuntimeError, match="KeyError: 'culprit'"):
        isolated("bug")
    assert isolated("terminate") == (child, "terminate")


def test_an_interrupted_call_does_not_answer_the_next_one(isolated, monkeypatch):
    isolated(0)

    def interrupt(timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolated._pipe, "poll", interrupt)
        with pytest.raises(KeyboardInterrupt):
            isolated(1)
    assert isolated(2)[1] == 2


def test_children_end_with_their_owner():
    isolated = Isolated(act, LIMIT)
    child, _ = isolated(0)
    del isolated
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize("what", [0, "hang"])
def test_children_end_with_an_owner_that_is_killed(what):
    readable, writable = os.pipe()
    worker = os.fork()
    if worker == 0:
        isolated = Isolated(act, 100)
        os.write(writable, str(isolated(0)[0]).encode())
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        isolated(what)
        time.sleep(100)
    grandchild = int(os.read(readable, 100))
    os.waitpid(worker, 0)
    os.close(readable), os.close(writable)
    deadline = time.monotonic() + 5
    while is_alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(grandchild)


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_ends_whichever_of_a_cycle_is_collected_first():
    isolated = Isolated(abs, 5.0)
    assert isolated(-1) == 1
    os.close(isolated._pipe.fileno())  # as the pipe does when it is collected
    child = isolated._child
    isolated.__del__()
    isolated._pipe._handle = None
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_what_the_parent_throws_away_is_not_freed_in_the_child():
    """A codec that was freed there would wait for its threads, which only the parent has."""
    container = av.open(io.BytesIO(), "w", format="mp4")
    stream = container.add_stream("libx264", rate=10)
    stream.width, stream.height, stream.pix_fmt, stream.thread_count = 320, 240, "yuv420p", 4
    for _ in range(20):
        stream.encode(av.VideoFrame(320, 240, "yuv420p"))
    garbage = [container, stream]
    garbage.append(garbage)
    gc.disable()
    try:
        del container, stream, garbage
        assert Isolated(collect_garbage, 3)() == "collected"
    finally:
        gc.enable()


def collect_garbage():
    gc.collect()
    return "collected"
