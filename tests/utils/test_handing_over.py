import pytest
import torch
from torch.utils.data import DataLoader
from transformers.utils import logging

from layerlock_hf.utils.handing_over import HandOver, Loader


SAMPLES = [{"video": torch.full((3, 2), float(number)), "name": str(number)} for number in range(4)]


def collate(samples):
    videos = torch.stack([sample["video"] for sample in samples])
    return {
        "videos": videos,
        "ids": [videos.long(), (videos.half(),)],
        "names": [sample["name"] for sample in samples],
    }


@pytest.fixture
def no_shared_memory(monkeypatch):
    """What PyTorch says where /dev/shm is full; workers are forked, and have it, too."""

    def refuse(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)


def check(batches):
    assert [batch["names"] for batch in batches] == [["0", "1"], ["2", "3"]]
    for batch in batches:
        expected = collate([SAMPLES[int(name)] for name in batch["names"]])
        assert torch.equal(batch["videos"], expected["videos"])
        assert torch.equal(batch["ids"][0], expected["ids"][0]) and torch.equal(
            batch["ids"][1][0], expected["ids"][1][0]
        )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_arrive(num_workers):
    check(list(Loader(SAMPLES, collate, batch_size=2, num_workers=num_workers)))


def test_batches_arrive_without_shared_memory(no_shared_memory, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("layerlock_hf"), "propagate", True)
    check(list(Loader(SAMPLES, collate, batch_size=2, num_workers=1)))
    assert "/dev/shm, through which data workers pass batches, is full" in caplog.text


def test_what_is_moved_to_a_device_has_arrived(no_shared_memory):
    (batch, *_) = DataLoader(SAMPLES, 2, collate_fn=HandOver(collate), num_workers=1)
    assert torch.equal(batch["videos"].to("cpu", non_blocking=True), collate(SAMPLES[:2])["videos"])


def test_other_errors_are_errors():
    def fail(samples):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        list(Loader(SAMPLES, fail, batch_size=2, num_workers=1))
