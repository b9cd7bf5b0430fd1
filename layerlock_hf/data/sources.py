"""Lists of videos: from folders, tables of paths, shards, prepared folders, local or at a URL, and from the Hub."""

import functools
import mimetypes
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import datasets
import pyarrow
import pyarrow.compute
from datasets.data_files import SPLIT_KEYWORDS
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name
from transformers.utils import logging

from ..models.video_reading_pictures import is_picture
from ..utils.hub_names import check_hub
from . import files
from .addresses import DEPTH_COLUMN, LABEL_COLUMN, SCHEMA, address_table, join_all, label_array
from .indexes import VIDEO_SUFFIXES, forget_footers, index_parquet, index_shards, index_tar, video_column
from .lists import READERS, read_rows
from .manifests import index_manifests, manifests_among, manifests_beside


logger = logging.get_logger(__name__)

SIDE_FILES = {
    *(".csv", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".md"),
    *(".parquet", ".npz", ".npy", ".log", ".html", ".xml"),
}
# Moving images, and MPEG transport streams, which the type tables take for translations of Qt.
MISTAKEN_FOR_SIDE_FILES = {".gif", ".ts"}
COMPRESSED_TAR = re.compile(r"\.(tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)
SOURCE_COLUMN = "source"
HUB = "hf://"


def load_videos(
    source: str | Sequence[str],
    split: str = "train",
    video_column: str | None = None,
    video_root: str | None = None,
    streaming: bool = False,
) -> datasets.Dataset:
    """List the videos of one or several sources, without opening any of them.

    A row is the address of a video, from which `fetch` gets it, so that any video can be read at any time.

    Args:
        source: each of them, a local path or an address that fsspec knows (https://, s3://, hf:// ...), of

            - a folder that `layerlock prepare` wrote, or one of the manifests in it;
            - a folder of videos (all its files, including those in subfolders and behind links, but not hidden or side
              files such as texts and images), of tars, of parquet files, or of folders of pictures, a frame each;
            - a .csv, .tsv, .txt, .json, .jsonl or .parquet file with a column path, video or file, relative to the
              folder of the list; a table without a header has a path in each row, and after it a label or numbers, of
              which the last is one;
            - a WebDataset tar, uncompressed; or a parquet file with embedded videos, as bytes or {bytes, path};
            - several of these files at once by a pattern: "train-{00000..00099}.tar", "videos/*.parquet";

            or a local folder written by `Dataset.save_to_disk`, or the id of a dataset on the Hub.
        split: the split of a dataset with several.
        video_column: name of the column of the videos, if it does not have a usual name.
        video_root: the folder that all videos must lie in, symbolic links resolved. By default a source on disk, which
            counts as the user's own, may name any file, also by a URL; one at a URL may name only what lies under its
            own folder, with or without `video_root`; one from the Hub only what was downloaded.
        streaming: whether a dataset on the Hub, of videos, tars or parquet files, is read where it is, video by video,
            and not downloaded.

    Returns:
        A dataset with the columns of `addresses.SCHEMA`, the number "source" of the source, counted from 0, and those
        of "label" and "depth" (path or URL of a file) that all rows of all sources have, of the same type. Rows are in
        the order of sources. "video" is {"path", "bytes"}.

    Raises:
        ValueError: naming the source, if it holds no videos, is damaged, cannot be reached or names what it may not.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise ValueError("source must name at least one folder, list or dataset of videos, got none")
    forget_footers()
    loaded = []
    for one in sources:
        if not one.strip():
            raise ValueError("source must be a folder, list or dataset of videos, got an empty name")
        try:
            dataset = _load(one, split, video_column, video_root, streaming)
        except files.FileError as error:
            raise ValueError(f"{one!r} cannot be read: {error}") from error
        if len(dataset) == 0:
            raise ValueError(f"{one!r} holds no videos: give a folder, list or dataset that does")
        loaded.append(dataset)
    return _mix(loaded)


def _load(source: str, split: str, column: str | None, root: str | None, streaming: bool) -> datasets.Dataset:
    if source.startswith("file://"):
        source = url2pathname(urlsplit(source).path)
    path = Path(source).expanduser()
    is_url = files.is_url(source) and not path.exists()
    # The folders that videos must lie in. What is at a URL is confined to its own folder already
    roots = [] if root is None else [root]
    if path.is_dir() and _is_saved_dataset(path):
        dataset = _from_rows(source, _from_disk(path, split), column)
    elif path.exists() or is_url or files.has_pattern(source):
        dataset = _from_table(_index(source if is_url else str(path), split, column))
        roots = [] if is_url else roots
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source) or path.suffix in {*SIDE_FILES, *INDEXES}:
        raise ValueError(f"{source!r} does not exist: give an existing path or the id of a dataset on the Hub")
    elif streaming:
        names = _of_split(source, _from_hub(datasets.load_dataset_builder, source).config.data_files, split)
        # Its card may name any file, also of this machine
        strange = [name for name in names if not name.startswith(HUB)]
        if strange:
            raise ValueError(f"{source!r} names {strange[0]!r}, which is not on the Hub: do not trust it")
        dataset = _from_table(_index_files(source, _without_side_files(names) or names, column))
        roots = []
    else:
        dataset = _from_rows(source, _from_hub(datasets.load_dataset, source, split=split), column)
        roots = roots or [HF_HUB_CACHE, str(datasets.config.HF_DATASETS_CACHE)]
    if roots:
        _check_names(source, dataset, roots)
    return dataset


def _index(source: str, split: str, column: str | None) -> pyarrow.Table:
    """The videos of a pattern, file or folder, local or at a URL."""
    is_url = files.is_url(source) and not os.path.exists(source)
    suffix = files.suffix_of(source)
    if files.has_pattern(source) and not os.path.exists(source):
        names = files.expand(source)
        return _index_files(source, _without_side_files(names) or names, column)
    if manifests_among([source]):
        beside = manifests_beside(source)  # where one at a URL is missing, reading it tells
        return index_manifests(source, beside if is_url else [name for name in beside if os.path.exists(name)])
    if suffix in INDEXES and not os.path.isdir(source):
        return _index_files(source, [source], column)
    if os.path.isfile(source) or is_url and suffix in VIDEO_SUFFIXES:
        _refuse_compressed([source])
        raise ValueError(
            f"{source!r} is not a list of videos: give a .csv, .json, .jsonl, .parquet or .tar file, or a folder"
        )
    manifests = manifests_among(files.walk(source, is_deep=False))
    if manifests:
        return index_manifests(source, manifests)
    found = files.walk(source)
    names = _without_side_files(found) or [name for name in found if files.suffix_of(name) == ".parquet"]
    folders = list(dict.fromkeys(map(os.path.dirname, filter(is_picture, found))))
    if not names and folders and not is_url:
        logger.warning(
            f"{source!r} holds no video files: its {len(folders)} folders of pictures are read as videos, one picture "
            "per frame"
        )
        return address_table(folders)
    if names and set(map(files.suffix_of, names)) <= {".tar", ".parquet"}:
        names = _shards_of_split(source, names, split)
    return _index_files(source, names, column)


def _index_files(source: str, names: list[str], column: str | None) -> pyarrow.Table:
    """The videos in these files, or these videos."""
    _refuse_compressed(names)
    suffixes = set(map(files.suffix_of, names))
    shards = suffixes & INDEXES.keys()
    if not shards:
        return address_table(names)
    if len(suffixes) > 1:
        raise ValueError(
            f"{source!r} mixes {' and '.join(sorted(suffixes))} files: choose one kind by a pattern such as '*.tar'"
        )
    return index_shards(functools.partial(INDEXES[shards.pop()], wanted=column), names)


def _shards_of_split(source: str, names: list[str], split: str) -> list[str]:
    """Those shards of a folder that are of a split by their names, as the datasets library reads them; or all."""
    found = {}
    for name in names:
        # Not by the folders that the source lies in
        words = set(re.split(r"[-._ /0-9]+", name[len(source) :]))
        named = [str(key) for key, keywords in SPLIT_KEYWORDS.items() if words.intersection(keywords)]
        found.setdefault(named[0] if named else None, []).append(name)
    if list(found) == [None]:
        return names
    if None in found:
        raise ValueError(
            f"{source!r}: {found[None][0]!r} belongs to no split, while other shards do: choose shards by a pattern "
            "such as '*.tar'"
        )
    return _of_split(source, found, split)


def _of_split(source: str, found: dict[str, list[str]] | None, split: str) -> list[str]:
    if not found:
        raise ValueError(f"{source!r} has no files that can be streamed: leave streaming out")
    if split not in found:
        raise ValueError(f"split must be one of {sorted(map(str, found))} for {source!r}, got {split!r}")
    return list(found[split])


def _refuse_compressed(names: list[str]):
    for name in names:
        if COMPRESSED_TAR.search(urlsplit(name).path):
            raise ValueError(f"{name!r} is compressed, so single videos cannot be read from it: unpack it to a .tar")


def _check_names(source: str, dataset: datasets.Dataset, roots: list[str]):
    """Raise a `ValueError` if a video is a file outside of these folders. Nothing is opened."""
    resolved = tuple(os.path.join(os.path.realpath(os.path.expanduser(root)), "") for root in roots)
    videos = dataset.data.column("video")
    names = pyarrow.compute.struct_field(videos, "path").fill_null("")
    is_embedded = pyarrow.compute.struct_field(videos, "bytes").is_valid()
    for name in names.filter(pyarrow.compute.invert(is_embedded)).unique().to_pylist():
        if files.is_url(name) or not os.path.realpath(name).startswith(resolved):
            is_culprit = pyarrow.compute.and_not(pyarrow.compute.equal(names, name), is_embedded)
            number = pyarrow.compute.index(is_culprit, True).as_py() + 1
            raise ValueError(
                f"{source!r}: row {number} names {name!r}, which does not lie in {' or '.join(roots)}: if you trust "
                "the source, set video_root to a folder that holds all its videos"
            )


def _without_side_files(names: list[str]) -> list[str]:
    return [name for name in names if not _is_side_file(name)]


def _is_side_file(name: str) -> bool:
    """Whether a file is known to be no video; an unknown one is kept, for a broken video must be reported."""
    suffix = files.suffix_of(name)
    kind = mimetypes.guess_type(f"name{suffix}")[0] or ""
    is_side_type = kind.startswith(("text/", "image/")) and suffix not in MISTAKEN_FOR_SIDE_FILES
    return suffix in SIDE_FILES or is_side_type


def _index_list(path: str, wanted: str | None) -> pyarrow.Table:
    rows = read_rows(path, files.read(path), wanted)
    column = video_column(path, [name for name in rows[0] if name], wanted)
    names = [column, LABEL_COLUMN] if LABEL_COLUMN in rows[0] else [column]
    for number, row in enumerate(rows, start=1):
        for name in names:
            if row.get(name) in (None, "") or name == column and not isinstance(row[name], str):
                raise ValueError(f"{path!r}: row {number} has no {name}")
    folder = files.folder_of(path)
    known = {name: label_array(path, [row[name] for row in rows]) for name in names[1:]}
    depths = [row.get(DEPTH_COLUMN) or None for row in rows]
    if any(depths) and all(isinstance(depth, str | None) for depth in depths):  # else something other than files
        known[DEPTH_COLUMN] = pyarrow.array(join_all(path, folder, depths), pyarrow.string())
    return address_table(join_all(path, folder, [row[column].strip() for row in rows]), **known)


INDEXES = {".tar": index_tar, ".parquet": index_parquet, **dict.fromkeys(READERS, _index_list)}


def _from_table(table: pyarrow.Table) -> datasets.Dataset:
    # A cast, as encoding paths with Video features needs a working torchcodec.
    dataset = datasets.Dataset(datasets.table.InMemoryTable(table))
    return dataset.cast_column("video", datasets.Video(decode=False))


def _is_saved_dataset(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _from_disk(path: Path, split: str) -> datasets.Dataset:
    dataset = datasets.load_from_disk(str(path))
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if split not in dataset:
        raise ValueError(f"split must be one of {sorted(dataset)} for {str(path)!r}, got {split!r}")
    return dataset[split]


def _from_hub(load: Callable, source: str, **arguments):
    if not (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="dataset")).exists():
        check_hub(f"{source!r} is not an existing path")
    try:
        return load(source, **arguments)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{source!r} is neither an existing path nor a dataset that can be reached on the Hub"
        ) from error


def _from_rows(source: str, dataset: datasets.Dataset, wanted: str | None) -> datasets.Dataset:
    """The videos of a dataset, which stays where it is: on disk, and mapped into memory."""
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Video)]
    column = video_column(source, dataset.column_names, wanted or next(iter(typed), None))
    kept = [column] + [name for name in (LABEL_COLUMN, DEPTH_COLUMN) if name in dataset.column_names]
    dataset = dataset.select_columns(kept).cast_column(column, datasets.Video(decode=False))
    dataset = dataset if column == "video" else dataset.rename_column(column, "video")
    unknown = address_table(pyarrow.nulls(len(dataset))).drop_columns("video")
    return _beside(dataset, unknown)


def _beside(dataset: datasets.Dataset, columns: pyarrow.Table) -> datasets.Dataset:
    added = datasets.Dataset(datasets.table.InMemoryTable(columns))
    return datasets.concatenate_datasets([dataset, added], axis=1)


def _mix(loaded: list[datasets.Dataset]) -> datasets.Dataset:
    """All rows, with the number of their source, and those further columns that all have, of the same type."""
    features = [dataset.features for dataset in loaded]
    further = [name for name in features[0] if name not in SCHEMA.names]
    kept = [name for name in further if all(one.get(name) == features[0][name] for one in features)]
    numbered = []
    for number, dataset in enumerate(loaded):
        numbers = pyarrow.repeat(pyarrow.scalar(number, pyarrow.int32()), len(dataset))
        numbered.append(_beside(dataset, pyarrow.table({SOURCE_COLUMN: numbers})))
    columns = [*SCHEMA.names, SOURCE_COLUMN, *kept]
    return datasets.concatenate_datasets([dataset.select_columns(columns) for dataset in numbered])
