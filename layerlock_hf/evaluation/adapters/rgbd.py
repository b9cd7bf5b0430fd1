"""Recordings of RGB-D cameras in folders: TUM, 7-Scenes, NYUv2, or a video with depth images."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path

from transformers.utils import logging

from ...data import DecodingError, read_clip
from .base import ALL, DepthSequence, NoSplit, Origin, path_in, read_json, read_lines
from .roots import parse_range
from .sequences import DepthImages, Excerpt, ImageFrames, PairedSequence, VideoFrames, check_metric, numbered, pair


logger = logging.get_logger(__name__)

ORIGIN = Origin(
    name="RGB-D",
    page="https://cvg.cit.tum.de/data/datasets/rgbd-dataset (TUM), "
    "https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/ (7-Scenes) or "
    "https://github.com/cleinc/bts (NYUv2)",
    licence="TUM CC BY 4.0; 7-Scenes non-commercial research; NYUv2 none stated",
    layout="""
SCENE/rgb.txt, depth.txt, rgb/TIME.png, depth/TIME.png                                (TUM)
SCENE/TrainSplit.txt, TestSplit.txt, seq-01/frame-000000.color.png and .depth.png     (7-Scenes)
SCENE/rgb_00000.jpg, sync_depth_00000.png                                             (NYUv2, sync.zip of BTS)
SCENE/meta.json with depth_unit, color.mp4 or color/000000.jpg, depth/000000.png      (video and depth images)""",
)
TUM_PER_METRE = 5000.0
MAX_DIFFERENCE = 0.02  # seconds between colour and depth of one frame, as in TUM's associate.py
PER_METRE = 1000.0
SEVEN_SCENES_INVALID = 65535
MAX_DEPTH = 65535  # of 16 bits
UNITS = {"millimetre": 1000.0, "millimeter": 1000.0, "mm": 1000.0, "metre": 1.0, "meter": 1.0, "m": 1.0}
# Sequences of a scene of 7-Scenes: lines such as "sequence1"
OWNERS_LISTS = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
# Of NYUv2: what is before the letter shows one place in several recordings, such as basement_0001a and b
PART = re.compile(r"(?<=\d)[a-z]$")
# The name of a recording, and its frames, None for all of them
Item = tuple[str, range | None]
NUM_LEVELS = 4  # of folders in which recordings are sought: those of a dataset, a scene, a recording


def read_rgbd(
    root: Path, split: str, *, train: str | None = None, test: str | None = None, part: str | None = None
) -> list[DepthSequence]:
    """The recordings in a folder, which may be one of them, to train or to test.

    Which these are is told by `train` and `test`, else by train.txt and test.txt in `root`, with one item a line,
    else by the owners of 7-Scenes.

    Args:
        root: a recording, or a folder of recordings, also in subfolders.
        split: "train" or "test".
        train, test: items, separated by commas: NAME, a recording or a folder of them; NAME:FIRST-LAST, some of its
            frames, both included; or FIRST-LAST where `root` is the recording.
        part: "all", to take all recordings for either split.

    Raises:
        ValueError: if there are no recordings, nothing tells how they are split, training and testing share frames, or
            depth is not metric.
    """
    scenes = _find_scenes(root)
    if not scenes:
        state = "holds no recording" if root.is_dir() else "is no folder"
        raise ORIGIN.refusal(f"{str(root)!r} {state}")
    if part not in (None, ALL):
        raise ValueError(f"part must be {ALL!r}, got {part!r}")
    items = {split: [(name, None) for name in scenes]} if part == ALL else _split(root, scenes, train, test)
    if split not in items:
        # Where something is told of the other split, all would be too much
        raise (ValueError if items else NoSplit)(
            f"{str(root)!r} does not say what to {split} on: name the recordings or frames, such as "
            f"'{root}?{_example(scenes)}', list them in {root / split}.txt, or take all of it by '{root}?part={ALL}'"
        )
    _check_disjoint(root, items)
    if split == "test":
        _warn_of_parts(root, scenes, items)
    sequences = []
    for name, frames in items[split]:
        open_scene, folder = scenes[name]
        whole = open_scene(folder, name)
        sequences.append(whole if frames is None else Excerpt(whole, frames))
    return sequences


def _find_scenes(root: Path) -> dict[str, tuple[Callable, Path]]:
    """By name, how to open each recording, and its folder."""
    found = {}
    folders = [root] if root.is_dir() else []
    for _ in range(NUM_LEVELS):
        others = []
        for folder in folders:
            open_scene = next((LAYOUTS[marker] for marker in LAYOUTS if next(folder.glob(marker), None)), None)
            if open_scene is None:
                others += [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
            else:
                name = root.absolute().name if folder == root else folder.relative_to(root).as_posix()
                found[name] = (open_scene, folder)
        folders = others
    return dict(sorted(found.items()))


def _split(root: Path, scenes: dict, train: str | None, test: str | None) -> dict[str, list[Item]]:
    """What is to train and to test, of these what is told."""
    lists = {split: root / f"{split}.txt" for split in OWNERS_LISTS}
    told = {split: text.split(",") for split, text in (("train", train), ("test", test)) if text is not None}
    told = told or {
        split: [" ".join(words) for _, words in read_lines(path)] for split, path in lists.items() if path.is_file()
    }
    if not told:
        return _owners_split(scenes)
    return {
        split: [parsed for item in items for parsed in _parse(root, scenes, item.strip())]
        for split, items in told.items()
    }


def _parse(root: Path, scenes: dict, item: str) -> list[Item]:
    name, colon, frames = item.rpartition(":")
    if not colon and item not in scenes and len(scenes) == 1 and item[:1].isdigit():
        name, colon, frames = next(iter(scenes)), ":", item
    if not colon or item in scenes:
        name, colon, frames = item, "", ""
    names = [scene for scene in scenes if scene == name or scene.startswith(f"{name}/")]
    if not names:
        raise ValueError(f"{str(root)!r} holds no recording {name!r}, only {', '.join(list(scenes)[:20])}")
    if colon and len(names) > 1:
        raise ValueError(f"{item!r} names frames of {len(names)} recordings, such as {names[0]}: name one recording")
    return [(scene, parse_range(frames) if colon else None) for scene in names]


def _owners_split(scenes: dict) -> dict[str, list[Item]]:
    """What the lists beside recordings, those of 7-Scenes, tell; of a split only if all recordings have its list."""
    by_parent = {}
    for name, (_, folder) in scenes.items():
        by_parent.setdefault(folder.parent, {})[folder.name] = name
    return {
        split: [item for parent, names in by_parent.items() for item in _listed(parent / file, names)]
        for split, file in OWNERS_LISTS.items()
        if all((parent / file).is_file() for parent in by_parent)
    }


def _listed(path: Path, names: dict[str, str]) -> list[Item]:
    """The recordings in a list of the owners, given the names of those beside it by their folders."""
    chosen = []
    for number, words in read_lines(path):
        digits = words[0].removeprefix("sequence")
        if not digits.isdecimal():
            raise ValueError(f"{str(path)!r}, line {number} must be a sequence such as sequence1")
        folder = f"seq-{int(digits):02d}"
        if folder not in names:
            raise ValueError(f"{str(path)!r} names {folder}, which is not beside it: unpack {folder}.zip there")
        chosen.append((names[folder], None))
    return chosen


def _example(scenes: dict) -> str:
    first, *others = scenes
    return f"train={first}&test={others[0]}" if others else "train=0-99&test=100-149"


def _check_disjoint(root: Path, items: dict[str, list[Item]]):
    """Raise a `ValueError` if frames are to train and to test."""
    for name, frames in items.get("train", []):
        for other, tested in items.get("test", []):
            is_shared = frames is None or tested is None or max(frames[0], tested[0]) <= min(frames[-1], tested[-1])
            if name == other and is_shared:
                raise ValueError(f"{str(root)!r}: training and testing share frames of {name}: give disjoint ranges")


def _warn_of_parts(root: Path, scenes: dict, items: dict[str, list[Item]]):
    """Parts of one scene of NYUv2 that are to train and to test are alike."""
    places = {split: {} for split in OWNERS_LISTS}
    for split, chosen in items.items():
        places[split] |= {PART.sub("", name): name for name, _ in chosen if scenes[name][0] is open_nyu}
    shared = [place for place in places["test"] if place in places["train"]]
    if shared:
        logger.warning(
            f"{str(root)!r}: {len(shared)} scenes are used to train and to test, such as "
            f"{places['train'][shared[0]]} and {places['test'][shared[0]]}, which show one place"
        )


def open_tum(folder: Path, name: str) -> PairedSequence:
    """rgb.txt and depth.txt, lists of a time in seconds and a file each, paired by time."""
    colour, depth = (_times(folder / file) for file in ("rgb.txt", "depth.txt"))
    times = {partner: time for time, partner in associate(sorted(colour), sorted(depth))}
    depth = {times.get(time, time): path for time, path in depth.items()}
    return _paired(folder, name, folder.absolute().name, colour, depth, per_metre=TUM_PER_METRE)


def _times(path: Path) -> dict[float, str]:
    """The path of the image at each time."""
    if not path.is_file():
        raise ORIGIN.refusal(f"{str(path)!r} is missing")
    found = {}
    for number, words in read_lines(path):
        if words[0].startswith("#"):
            continue
        try:
            time, file = words
            time = float(time)
        except ValueError as error:
            raise ValueError(f"{str(path)!r}, line {number} must be a time and a file: {error}") from error
        found[time] = path_in(path.parent, file)
    return found


def associate(first: list[float], second: list[float]) -> list[tuple[float, float]]:
    """Pairs of times that differ by at most `MAX_DIFFERENCE`, the closest first, each time in one pair; in order.

    Args:
        first, second: ascending times in seconds.
    """
    candidates = []
    for time in first:
        low = bisect_left(second, time - MAX_DIFFERENCE)
        high = bisect_right(second, time + MAX_DIFFERENCE)
        candidates += [(abs(time - other), time, other) for other in second[low:high]]
    pairs, used = {}, set()
    for _, time, other in sorted(candidates):
        if time not in pairs and other not in used:
            pairs[time] = other
            used.add(other)
    return sorted(pairs.items())


def open_seven_scenes(folder: Path, name: str) -> PairedSequence:
    """frame-000000.color.png and frame-000000.depth.png, in millimetres.

    The two cameras are not calibrated to each other: depth is that of the depth camera, a few pixels beside colour.
    """
    files = {
        kind: {path.name.split(".")[0]: str(path) for path in folder.glob(f"frame-*.{kind}.png")}
        for kind in ("color", "depth")
    }
    return _paired(folder, name, folder.absolute().parent.name, files["color"], files["depth"], SEVEN_SCENES_INVALID)


def open_nyu(folder: Path, name: str) -> PairedSequence:
    """rgb_00000.jpg and sync_depth_00000.png, in millimetres, as the script of BTS (Lee et al., 2019) exports them.

    It takes every seventh of the synchronised frames and numbers these from 0: neighbours are about 1/4 s apart.
    """
    colour, depth = numbered(folder, "rgb_*.jpg"), numbered(folder, "sync_depth_*.png")
    return _paired(folder, name, PART.sub("", folder.absolute().name), colour, depth)


def open_video(folder: Path, name: str) -> PairedSequence:
    """meta.json; color.mp4 or images in color/; and depth/000000.png, which has the number of its frame.

    Raises:
        ValueError: if meta.json is missing, does not name the unit of depth or has another invalid_depth than a number
            of 16 bits, or the video cannot be read.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise ORIGIN.refusal(f"{str(path)!r} is missing")
    facts = read_json(path)
    unit = facts.get("depth_unit") if isinstance(facts, dict) else None
    if str(unit) not in UNITS:
        raise ValueError(
            f"{str(path)!r}: depth is not metric: depth_unit must be one of {', '.join(UNITS)}, got {unit!r}"
        )
    invalid, per_metre = facts.get("invalid_depth", 0), UNITS[unit]
    if type(invalid) is not int or not 0 <= invalid <= MAX_DEPTH:
        raise ValueError(
            f"{str(path)!r}: invalid_depth must be a whole number between 0 and {MAX_DEPTH}, got {invalid!r}"
        )
    depth = numbered(folder / "depth", "*.png")
    video = folder / "color.mp4"
    if not video.is_file():
        colour = numbered(folder / "color", "*.jpg", "*.png")
        return _paired(folder, name, folder.absolute().name, colour, depth, invalid, per_metre)
    try:
        num_frames = read_clip(str(video), lambda num_frames: [0]).num_frames
    except DecodingError as error:
        raise ValueError(f"{str(video)!r} cannot be read: {error}") from error
    shared = pair(str(folder), range(num_frames), depth)
    images = DepthImages([depth[number] for number in shared], per_metre, invalid)
    check_metric(str(folder), len(images), images.read)
    return PairedSequence(name, folder.absolute().name, VideoFrames(str(video), shared), images)


def _paired(
    folder: Path, name: str, group: str, colour: dict, depth: dict, invalid: int = 0, per_metre: float = PER_METRE
) -> PairedSequence:
    """Images that are paired by what both are called."""
    shared = pair(str(folder), colour, depth)
    images = DepthImages([depth[key] for key in shared], per_metre, invalid)
    check_metric(str(folder), len(images), images.read)
    return PairedSequence(name, group, ImageFrames([colour[key] for key in shared]), images)


# What tells a layout -> what opens such a folder, from the folder and the name of the recording
LAYOUTS = {
    "meta.json": open_video,
    "color.mp4": open_video,
    "rgb.txt": open_tum,
    "frame-*.color.png": open_seven_scenes,
    "rgb_*.jpg": open_nyu,
}
