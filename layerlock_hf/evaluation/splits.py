"""Training and test data of readouts: the clips of a dataset, per task, and the baselines that need no pixels."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ..data import BadVideos, ClipTransform, PretrainingClips, name_of
from ..evaluation import (
    DepthTestClips,
    DepthTrainingClips,
    SweepArguments,
    TestClips,
    TrainingClips,
    count_windows,
)
from .adapters import read_depth, read_labelled
from .arguments import ClipArguments
from .baselines import TrainingDepth, class_frequencies, frame_shape_probabilities
from .metrics import SampleScores, score_classes, score_depth
from .results import TestSet
from .sweep import Baseline
from .tasks import Classification, Depth, Task


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
            raise ValueError(f"data: videos must have at least two classes, got only {self.train.class_names[0]!r}")

    @property
    def num_train(self) -> int:
        return len(self.train.labels)

    def contents(self) -> list:
        """What is trained on, and what is tested, to know it again."""
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

    def baselines(self) -> dict[str, Baseline]:
        """The commonest class, and what the shape and the size of the frames alone tell of the class.

        Raises:
            ValueError: if no training video can be read.
        """
        num_classes = len(self.train.class_names)
        sizes, labels = _from_main_process(self._training_sizes)
        frequencies = class_frequencies(self.train.labels, num_classes, 1)

        def majority(batch: dict) -> torch.Tensor:
            return frequencies.expand(len(batch["labels"]), -1)

        def aspect_ratio(batch: dict) -> torch.Tensor:
            return frame_shape_probabilities(sizes, labels, batch["size"], num_classes)

        def frame_size(batch: dict) -> torch.Tensor:
            return frame_shape_probabilities(sizes, labels, batch["size"], num_classes, uses_size=True)

        return {predict.__name__: _class_baseline(predict) for predict in (majority, aspect_ratio, frame_size)}

    def _training_sizes(self) -> tuple[torch.Tensor, list[int]]:
        """Height and width of training videos that can be read, (n, 2), and their labels."""
        transform = ClipTransform(SHAPE_SIZE)
        clips = TestClips(
            self.train.videos, self.train.labels, 1, 1, transform, decode_timeout=self.args.decode_timeout
        )
        chosen = Subset(clips, range(0, self.num_train, -(-self.num_train // MAX_VIDEOS)))
        items = [item for item in _items(chosen, self.sweep.num_workers, "sizes") if "error" not in item]
        if not items:
            raise ValueError(
                f"data: none of {len(chosen)} training videos can be read, the first because of: {clips[0]['error']}"
            )
        return torch.stack([item["size"] for item in items]), [item["labels"] for item in items]


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
        """Clips that the recordings are cut into, as those of the test are."""
        return len(self.fixed_clips())

    def contents(self) -> list:
        """What is trained on, and what is tested, to know it again."""
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

    def baselines(self) -> dict[str, Baseline]:
        """Depth that is the same for every clip: a number, or a map.

        Raises:
            ValueError: if the depth of no training clip is known.
        """

        def baseline(predicted: torch.Tensor) -> Baseline:
            def score_samples(batch: dict) -> SampleScores:
                metres = batch["labels"]
                return score_depth(predicted.to(metres.device).expand_as(metres), metres, batch["index"])

            return score_samples

        return {name: baseline(predicted) for name, predicted in _from_main_process(self._training_depth).items()}

    def _training_depth(self) -> dict[str, torch.Tensor]:
        depth = TrainingDepth()
        for item in _items(self._clips(self.train, MAX_CLIPS), self.sweep.num_workers, "depth of training"):
            if "error" not in item:
                depth.add(item["labels"])
        return depth.baselines()


def report_of_bad_videos(args: ClipArguments, num_clips: int) -> BadVideos:
    """The report of what cannot be trained on, of so many videos or windows."""
    return BadVideos(str(Path(args.output_dir) / BAD_VIDEOS), num_clips, args.max_bad_fraction)


def _names(videos) -> list[str]:
    return [name_of(row, index) for index, row in enumerate(videos)]


def _class_baseline(predict: Callable[[dict], torch.Tensor]) -> Baseline:
    return lambda batch: score_classes(predict(batch), batch["labels"], batch["index"])


def _from_main_process(make: Callable):
    """What the main process makes, in all processes."""
    made = [make() if PartialState().is_main_process else None]
    return broadcast_object_list(made)[0]


def _items(dataset: Dataset, num_workers: int, name: str) -> Iterator[dict]:
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    return iter(tqdm(loader, desc=name, leave=False))


SETS = {"classification": LabelledSets, "depth": DepthSets}
