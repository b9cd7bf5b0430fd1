"""Sharded checkpoints (torch.distributed.checkpoint) are pickles in part: this looks into them without running any.

Of a folder of DCP, `.metadata` is read by `pickle.load`, and every entry that is no tensor by
`torch.load(weights_only=False)`. Only tensors are read safely.
"""

import io
import pickle
from enum import Enum
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from .run_file import CheckpointRefused


# Classes that hold data and do nothing when they are made, and what tensors are described with
ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


def enum_member(kind: type, name: str) -> Enum:
    """What `getattr` does in pickles of Python 3.11.0 to 3.11.3, which write members of enumerations by it."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise CheckpointRefused(f"it takes {name!r} of {kind!r}, which no checkpoint needs")
    return kind[name]


class DataUnpickler(pickle.Unpickler):
    """Knows no names but those of `ALLOWED` and of dtypes: a pickle runs code only through names."""

    def find_class(self, module, name):
        if (module, name) == ("builtins", "getattr"):
            return enum_member
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if is_dtype or name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointRefused(f"it names {module}.{name}, which no checkpoint needs")


def check_pickles(folder: Path):
    """Raise `CheckpointRefused` if loading this folder of DCP could run code or read files outside of it."""
    try:
        with (folder / ".metadata").open("rb") as file:
            metadata = DataUnpickler(file).load()
        for index, stored in metadata.storage_data.items():
            path = (folder / stored.relative_path).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise CheckpointRefused(f"{index.fqn} lies in {stored.relative_path}, outside the checkpoint")
            if stored.transform_descriptors:
                raise CheckpointRefused(f"{index.fqn} is transformed by {stored.transform_descriptors}")
            if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with path.open("rb") as file:
                    file.seek(stored.offset)
                    torch.load(io.BytesIO(file.read(stored.length)), weights_only=True)
    except (
        ValueError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        RuntimeError,
        pickle.PickleError,
    ) as error:
        raise CheckpointRefused(f"{folder} is refused as a checkpoint: {error}") from error
