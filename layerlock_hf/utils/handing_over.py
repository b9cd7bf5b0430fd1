"""How batches come from data workers to the process that trains."""

import functools
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, get_worker_info
from transformers.utils import logging

from .processes import init_worker, shielded


logger = logging.get_logger(__name__)


class HandOver:
    """A collate function whose batches arrive where shared memory is too small, too: Docker gives 64 MB of it.

    PyTorch shares tensors in a thread of the worker, and an error there is lost: the run would wait for ever. Here
    they are shared before, and where that fails the batch goes through a pipe, which takes a copy more.

    Args:
        collate: makes a batch of samples.
    """

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, samples):
        batch = self.collate(samples)
        if get_worker_info() is None:
            return batch
        try:
            return _map(batch, torch.Tensor, torch.Tensor.share_memory_)
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            return _map(batch, torch.Tensor, Copied)


class Copied:
    """A tensor that does not lie in shared memory. Moving it to a device, which every batch is, gives the tensor."""

    def __init__(self, tensor: torch.Tensor):
        self.array = tensor.numpy()

    def to(self, device: torch.device | str | None = None, **kwargs) -> torch.Tensor:
        logger.warning_once(
            "/dev/shm, through which data workers pass batches, is full, so a slower way is used: make it larger "
            "(docker run --shm-size 8g), or lower dataloader_num_workers or dataloader_prefetch_factor"
        )
        return torch.from_numpy(self.array).to(device, **kwargs)


class Loader(DataLoader):
    """A `DataLoader` whose batches arrive in any case, and whose workers leave Ctrl-C and SIGTERM to their parent.

    Args:
        collate_fn: makes a batch of samples.
        options: as of `DataLoader`.
    """

    def __init__(self, dataset, collate_fn: Callable, **options):
        super().__init__(dataset, collate_fn=HandOver(collate_fn), **options)
        self.worker_init_fn = functools.partial(init_worker, self.worker_init_fn)
        if self.num_workers:
            self.multiprocessing_context = shielded(self.multiprocessing_context)

    def __iter__(self):
        return map(received, super().__iter__())


def received(batch):
    """A batch of which nothing is copied any more."""
    return _map(batch, Copied, Copied.to)


def _map(batch, kind: type, change: Callable):
    if isinstance(batch, kind):
        return change(batch)
    if isinstance(batch, dict):
        return {name: _map(value, kind, change) for name, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_map(value, kind, change) for value in batch)
    return batch
