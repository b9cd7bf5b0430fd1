"""Labelled videos and depth, read as the owners of datasets distribute them, with one reader per dataset.

To add a dataset, add a file with a reader beside these, and a line in `LABELLED` or `DEPTH`.
"""

from collections.abc import Callable

from .base import ALL, DepthSequence, LabelledVideos, NoSplit
from .hmdb51 import read_hmdb51
from .kinetics import read_kinetics
from .procedural import read_procedural, read_procedural_depth
from .rgbd import read_rgbd
from .roots import check_options, parse_root
from .scannet import read_scannet
from .ssv2 import read_ssv2
from .tables import read_folder, read_table
from .ucf101 import read_ucf101


# Readers take the root, the split, and as keywords the options that may follow the root
LABELLED: dict[str, Callable[..., LabelledVideos]] = {
    "table": read_table,
    "folder": read_folder,
    "ssv2": read_ssv2,
    "kinetics": read_kinetics,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "procedural": read_procedural,
}
DEPTH: dict[str, Callable[..., list[DepthSequence]]] = {
    "scannet": read_scannet,
    "rgbd": read_rgbd,
    "procedural": read_procedural_depth,
}
SPLITS = ("train", "test")


def read_labelled(dataset: str, root: str, split: str, may_lack_split: bool = False) -> LabelledVideos:
    """The labelled videos of a split.

    Args:
        dataset: a key of `LABELLED`.
        root: where it is, with options of its reader: "splits.csv?dataset=ut_interaction", "UCF?fold=2".
        split: "train" or "test"; the latter is the validation set if the labels of the test set are not published.
        may_lack_split: whether a root that does not separate training from testing is used as a whole. Only right if
            the other split has a root of its own.

    Raises:
        ValueError: saying what is missing or wrong, what was expected, and where to get the dataset.
    """
    return _read(LABELLED, dataset, root, split, may_lack_split)


def read_depth(dataset: str, root: str, split: str, may_lack_split: bool = False) -> list[DepthSequence]:
    """The recordings with depth of a split.

    Args:
        dataset: a key of `DEPTH`.
        root: where it is, with options of its reader: "rgbd?train=redkitchen:0-269&test=fr1_xyz".
        split: "train" or "test", as `read_labelled`.
        may_lack_split: as `read_labelled`.

    Raises:
        ValueError: saying what is missing or wrong, what was expected, and where to get the dataset.
    """
    return _read(DEPTH, dataset, root, split, may_lack_split)


def _read(readers: dict[str, Callable], dataset: str, root: str, split: str, may_lack_split: bool):
    if dataset not in readers:
        raise ValueError(f"dataset must be one of {', '.join(readers)}, got {dataset!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    path, options = parse_root(root)
    check_options(root, readers[dataset], options)
    try:
        return readers[dataset](path, split, **options)
    except NoSplit:
        if not may_lack_split:
            raise
        return readers[dataset](path, split, **options | {"part": ALL})


__all__ = ["DEPTH", "LABELLED", "DepthSequence", "LabelledVideos", "read_depth", "read_labelled"]
