"""Errors that end a run with one line rather than a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from ..data import BadData
from ..pretraining.health_check import RunUnhealthy
from ..recipes.settings import UsageError
from ..training.callbacks import NoDataCame
from ..training.checkpoints import CheckpointNotWritten
from ..training.memory_check import DoesNotFit
from ..training.run_file import CheckpointRefused
from ..training.trainer import LossNotFinite


@contextlib.contextmanager
def settings_errors_told() -> Iterator[None]:
    """Report errors in settings, before a run."""
    try:
        yield
    except UsageError as error:
        print(f"{error.usage}error: {error}", file=sys.stderr)
        raise SystemExit(2) from None  # as argparse has it
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


@contextlib.contextmanager
def run_errors_told(workers: str, go_on: str = "") -> Iterator[None]:
    """Report errors of a run.

    Args:
        workers: the setting of the number of data workers.
        go_on: how to resume after a worker was lost, as the end of the message.
    """
    try:
        yield
    except (CheckpointRefused, CheckpointNotWritten, DoesNotFit, RunUnhealthy) as error:
        raise SystemExit(f"error: {error}") from None
    except NoDataCame as error:
        raise SystemExit(f"error: {error}. Resume with --resume auto") from None
    except (BadData, LossNotFinite) as error:
        # Of a data worker it comes with a traceback in its message
        told = str(error).splitlines()[-1].removeprefix(f"{BadData.__module__}.{BadData.__name__}: ")
        raise SystemExit(f"error: {told}") from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # PyTorch has no class for a worker that was killed
            raise
        told = " ".join(str(error).split()).rstrip(".")
        raise SystemExit(
            f"error: {told}. The system kills processes when memory runs out: use fewer {workers}{go_on}"
        ) from None
