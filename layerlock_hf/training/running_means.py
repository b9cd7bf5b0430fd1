"""What is logged of the steps since the last log."""

import contextlib
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator


class RunningMeans:
    """What there was since the last `take`: means over batches and processes, clips per second, the share of the time
    that was spent waiting for data, and how many clips were padded.

    Values stay on their device until they are taken.
    """

    def __init__(self):
        self._clear()

    def _clear(self):
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._num_clips, self._num_padded, self._waited_s, self._clock = 0, 0, 0.0, time.perf_counter()

    def add(self, name: str, value: torch.Tensor):
        """One more value: ()."""
        self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._counts[name] = self._counts.get(name, 0) + 1

    def add_clips(self, num_clips: int, num_padded: int | torch.Tensor):
        self._num_clips += num_clips
        self._num_padded = self._num_padded + num_padded

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """What happens within is waiting for the next batch."""
        began = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - began

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means, and `explained_variance` for each `loss` with its `target_variance`; begins anew."""
        logs = {
            name: accelerator.reduce(total, "mean").item() / self._counts[name] for name, total in self._sums.items()
        }
        for name in [name for name in self._sums if name.endswith("/target_variance")]:
            head = name.removesuffix("/target_variance")
            logs[f"{head}/explained_variance"] = 1 - logs[f"{head}/loss"] / max(logs[name], 1e-12)
        num_padded = torch.as_tensor(self._num_padded, device=accelerator.device)
        logs["padded_clips"] = accelerator.reduce(num_padded, "sum").item()
        seconds = time.perf_counter() - self._clock
        waited = torch.tensor(self._waited_s / seconds, device=accelerator.device)
        logs["data_wait_fraction"] = accelerator.reduce(waited, "mean").item()
        logs["clips_per_second"] = self._num_clips * accelerator.num_processes / seconds
        self._clear()
        return logs
