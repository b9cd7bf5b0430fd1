"""What train_readout.py trains on and tests: the clips of a data set, per task, and what is known without looking."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from layerlock_hf.data import BadVideos, ClipTransform, PretrainingClips, name_of
from layerlock_hf.evaluation import (
    DepthTestClips,
    DepthTrainingClips,
    SweepArguments,
    TestClips,
    TrainingClips,
    count_windows,
)
from layerlock_hf.evaluation.adapters import read_depth, read_labelled
from layerlock_hf.evaluation.baselines import TrainingDepth, class_frequencies, frame_shape_probabilities
from layerlock_hf.evaluation.metrics import Judged, in_order, judge_classes, judge_depth
from layerlock_hf.evaluation.results import TestSet
from layerlock_hf.evaluation.tasks import Classification, Depth, Task
from readout_arguments import ClipArguments


BAD_VIDEOS = "bad_videos.jsonl"
# Training videos that the baselines learn from, evenly spread
MAX_VIDEOS, MAX_CLIPS = 2000, 200
SHAPE_SIZE = 16  # pixels of clips of which only the size of the video matters


class LabelledSets:
    """Videos and their classes.

    Args:
        args: which videos, and how they are shown.
        sweep: on how many clips readouts are trained.
        config: of the readouts: size and length of clips.
    """

    def __init__(self, args: ClipArguments, sweep: SweepArguments, config):
        self.args, self.sweep, self.config = args, sweep, config
        lacks_split = args.test_data is not None
        self.train = read_labelled(args.dataset, args.data, "train", lacks_split)
        test = read_labelled(args.dataset, args.test_data or args.data, "test", lacks_split)
        self.test = test.relabelled(self.train.class_names)
        if len(self.train.class_names) < 2:
            raise ValueError(
                f"data: all videos have the class {self.train.class_names[0]!r}; give at least two classes"
            )

    @property
    def num_train(self) -> int:
        return len(self.train.labels)

    def contents(self) -> list:
        """What is trained on and tested, to know it again."""
        return [[part.class_names, part.labels, _names(part.videos)] for part in (self.train, self.test)]

    def task(self, readout: Callable[..., nn.Module]) -> Task:
        return Classification(self.config, len(self.train.class_names), self.args.num_test_clips, readout)

    def training_clips(self) -> Dataset:
        """By position, augmented."""
        clips = PretrainingClips(
            self.train.videos,
            self.sweep.num_examples,
            self.config.num_frames,
            self.args.frame_stride,
            self.args.transform(self.config.image_size),
            self.sweep.seed,
            frame_rate=self.args.frame_rate,
            bad_videos=report_of_bad_videos(self.args, self.num_train),
            decode_timeout=self.args.decode_timeout,
        )
        return TrainingClips(clips, self.train.labels, self.args.is_still)

    def fixed_clips(self) -> Dataset:
        """The middle of every training video."""
        return self._clips(self.train, 1)

    def test_clips(self) -> Dataset:
        return self._clips(self.test, self.args.num_test_clips)

    def _clips(self, videos, num_windows: int) -> TestClips:
        return TestClips(
            videos.videos,
            videos.labels,
            self.config.num_frames,
            self.args.frame_stride,
            self.args.transform(self.config.image_size),
            num_windows,
            self.args.frame_rate,
            self.args.is_still,
            self.args.decode_timeout,
        )

    def test_set(self, errors: dict[int, str]) -> TestSet:
        return TestSet(_names(self.test.videos), errors, self.test.groups, self.train.class_names)

    def baselines(self, errors: dict[int, str]) -> dict[str, Judged]:
        """The commonest class, and what the shape and the size of the frames alone tell of the class."""
        kept = torch.tensor([index for index in range(len(self.test.labels)) if index not in errors])
        labels = torch.tensor(self.test.labels)[kept]
        num_classes = len(self.train.class_names)
        found = {"majority": class_frequencies(self.train.labels, num_classes, len(kept))}
        sizes, train_labels = self._sizes(self.train, range(0, self.num_train, -(-self.num_train // MAX_VIDEOS)))
        test_sizes, _ = self._sizes(self.test, kept.tolist())
        if len(test_sizes) == len(kept):
            for name, uses_size in (("aspect_ratio", False), ("frame_size", True)):
                found[name] = frame_shape_probabilities(sizes, train_labels, test_sizes, num_classes, uses_size)
        return {name: judge_classes(probabilities, labels, kept) for name, probabilities in found.items()}

    def _sizes(self, videos, indices) -> tuple[list[tuple[int, int]], list[int]]:
        """Height and width of the videos that can be read, and their labels."""
        clips = TestClips(
            videos.videos, videos.labels, 1, 1, ClipTransform(SHAPE_SIZE), decode_timeout=self.args.decode_timeout
        )
        items = _items(Subset(clips, list(indices)), self.sweep.num_workers, "sizes")
        items = [item for item in items if "error" not in item]
        return [item["size"] for item in items], [item["labels"] for item in items]


class DepthSets:
    """Recordings and their depth. The arguments are those of `LabelledSets`."""

    def __init__(self, args: ClipArguments, sweep: SweepArguments, config):
        self.args, self.sweep, self.config = args, sweep, config
        lacks_split = args.test_data is not None
        self.train = read_depth(args.dataset, args.data, "train", lacks_split)
        self.test = read_depth(args.dataset, args.test_data or args.data, "test", lacks_split)
        self._test_clips = self._clips(self.test, args.max_test_clips)

    @property
    def num_train(self) -> int:
        return sum(map(len, self.train))

    def contents(self) -> list:
        """What is trained on and tested, to know it again."""
        return [[(sequence.name, len(sequence)) for sequence in part] for part in (self.train, self.test)]

    def task(self, readout: Callable[..., nn.Module]) -> Task:
        return Depth(self.config, readout=readout)

    def training_clips(self) -> Dataset:
        """By position, augmented."""
        num_windows = count_windows(self.train, self.config.num_frames, self.args.frame_stride)
        return DepthTrainingClips(
            self.train,
            self.sweep.num_examples,
            self.config.num_frames,
            self.args.frame_stride,
            self.args.transform(self.config.image_size),
            self.sweep.seed,
            report_of_bad_videos(self.args, num_windows),
            self.args.decode_timeout,
        )

    def fixed_clips(self) -> Dataset:
        """All training recordings, cut into clips."""
        return self._clips(self.train)

    def test_clips(self) -> Dataset:
        return self._test_clips

    def _clips(self, sequences, max_clips: int | None = None) -> DepthTestClips:
        return DepthTestClips(
            sequences,
            self.config.num_frames,
            self.args.frame_stride,
            self.args.transform(self.config.image_size),
            max_clips,
            self.args.decode_timeout,
        )

    def test_set(self, errors: dict[int, str]) -> TestSet:
        clips = self._test_clips
        return TestSet(clips.names(), errors, clips.groups(), [])

    def baselines(self, errors: dict[int, str]) -> dict[str, Judged]:
        """Depth that is the same for every clip: a number, or a map. None if the truth cannot be read again."""
        clips = self._clips(self.train, MAX_CLIPS)
        depth = TrainingDepth()
        for item in _items(clips, self.sweep.num_workers, "depth of training"):
            if "error" not in item:
                depth.add(item["labels"])
        maps = depth.baselines()
        judged = {name: [] for name in maps}
        kept = Subset(self._test_clips, [index for index in range(len(self._test_clips)) if index not in errors])
        for item in _items(kept, self.sweep.num_workers, "baselines"):
            if "error" in item:
                return {}
            metres, index = item["labels"][None], torch.tensor([item["index"]])
            for name, predicted in maps.items():
                judged[name].append(judge_depth(predicted.expand_as(metres), metres, index))
        return {name: in_order(parts) for name, parts in judged.items()}


def report_of_bad_videos(args: ClipArguments, num_clips: int) -> BadVideos:
    """The report of what cannot be trained on, of so many videos or windows."""
    return BadVideos(str(Path(args.output_dir) / BAD_VIDEOS), num_clips, args.max_bad_fraction)


def _names(videos) -> list[str]:
    return [name_of(row, index) for index, row in enumerate(videos)]


def _items(dataset: Dataset, num_workers: int, name: str) -> Iterator[dict]:
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    return iter(tqdm(loader, desc=name, leave=False))


SETS = {"classification": LabelledSets, "depth": DepthSets}
