"""A check of folders and Hub repositories of weights that somebody else may have written."""

import json
import os
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME, cached_file

from .run_file import CheckpointRefused


def check_weight_names(path: str):
    """Refuse an index of sharded weights that names anything but files beside it: Transformers would open them.

    Raises:
        CheckpointRefused: naming the index and the file.
    """
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        file = cached_file(path, index, _raise_exceptions_for_missing_entries=False)
        if file is None:
            continue
        try:
            names = set(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"].values())
            outside = sorted(name for name in names if name in ("", ".", "..") or os.path.basename(name) != name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointRefused(f"{index} of {path} cannot be read: {error!r}") from error
        if outside:
            raise CheckpointRefused(
                f"{index} of {path} names {outside[0]!r}, which is not a file beside it: do not trust {path}"
            )
