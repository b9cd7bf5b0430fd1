"""Large files of many videos each, written so that one video can be read out of the middle."""

import contextlib
import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..sources import LABEL_COLUMN


# Bytes of videos: what one ranged read of a parquet file fetches
ROW_GROUP_SIZE = 4 * 2**20
MAX_PARQUET_VIDEO = 2**31 - 2**20  # bytes; the columns that the datasets library reads have 32-bit offsets


class TarShard:
    """A tar file in the layout of WebDataset: of each video `key.mp4`, and `key.json` with its name and label.

    The ending says nothing about the container of the video, which FFmpeg tells by its content: readers of WebDataset
    go by the ending, and want the same ones for all samples.

    Args:
        path: the file to write.
        label: type of the labels, None without.

    Attributes:
        size: bytes of videos so far.
    """

    suffix = ".tar"
    location = {"offset": pa.int64()}

    def __init__(self, path: Path, label: object | None = None):
        self.size = 0
        self._has_label = label is not None
        self._file = open(path, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, key: str, name: str, label: object, path: Path, size: int) -> dict:
        """Write the `size` bytes of the video at `path`; returns its place, by the names of `location`."""
        about = {"name": name, LABEL_COLUMN: label} if self._has_label else {"name": name}
        text = json.dumps(about).encode()
        self._add(f"{key}.json", io.BytesIO(text), len(text))
        with open(path, "rb") as video:
            self._add(f"{key}.mp4", video, size)
        self.size += size
        # The file ends with the video, filled up to whole blocks
        padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return {"offset": self._file.tell() - padded}

    def _add(self, name: str, content: io.IOBase, size: int):
        entry = tarfile.TarInfo(name)  # its time is 1970, so that the same videos give the same bytes
        entry.size = size
        self._tar.addfile(entry, content)

    def close(self):
        """Finish the file."""
        self._tar.close()
        self._file.close()

    def abandon(self):
        """Let go of the file, unfinished."""
        _abandon(self._file)


class ParquetShard:
    """A parquet file with a column "video" that `datasets` reads as `Video()`, and "label".

    Row groups hold a few MiB, uncompressed: a reader fetches one video, or few.

    Args and attributes are those of `TarShard`.
    """

    suffix = ".parquet"
    location = {"row_group": pa.int64(), "row": pa.int64()}  # row within its row group

    def __init__(self, path: Path, label: object | None = None):
        self.size = 0
        features = {"video": datasets.Video()} | ({} if label is None else {LABEL_COLUMN: label})
        self._schema = datasets.Features(features).arrow_schema
        self._rows, self._pending, self._row_group = [], 0, 0
        self._file = open(path, "wb")
        # Dictionaries and statistics would copy videos into the head and the foot
        self._writer = pq.ParquetWriter(
            self._file, self._schema, compression="none", use_dictionary=False, write_statistics=False
        )

    def add(self, key: str, name: str, label: object, path: Path, size: int) -> dict:
        """As `TarShard.add`."""
        if self._rows and self._pending + size > ROW_GROUP_SIZE:
            self._flush()
        with open(path, "rb") as file:
            video = file.read(size)
        if len(video) != size:
            raise OSError(f"{path} ends too early")
        row = {"video": {"bytes": video, "path": name}, LABEL_COLUMN: label}
        self._rows.append({column: row[column] for column in self._schema.names})
        self._pending += size
        self.size += size
        return {"row_group": self._row_group, "row": len(self._rows) - 1}

    def _flush(self):
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._pending, self._row_group = [], 0, self._row_group + 1

    def close(self):
        """As `TarShard.close`."""
        if self._rows:
            self._flush()
        self._writer.close()
        self._file.close()

    def abandon(self):
        """As `TarShard.abandon`."""
        with contextlib.suppress(OSError):
            self._writer.close()
        _abandon(self._file)


SHARDS = {"tar": TarShard, "parquet": ParquetShard}


def _abandon(file: io.BufferedWriter):
    with contextlib.suppress(OSError):  # the disk may be full, which somebody says already
        file.close()
