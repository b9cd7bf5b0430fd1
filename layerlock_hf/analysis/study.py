"""Measures of several encoders that see the same videos.

n clips, D width. A depth is a number of layers passed, 0 the embedded tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..evaluation import TestClips
from ..evaluation.adapters import LabelledVideos
from ..evaluation.any_videos import DECODE_TIMEOUT, clips_for
from .attention import attention_distances
from .decodability import check_folds, cross_validated_accuracy, majority_share, occlusion_drop, probe_accuracy
from .gathering import Gathered, gather, gather_gratings
from .gratings import DOUBLE_DRIFTING, DRIFTING, Gratings
from .measures import MEASURES
from .retrieval import retrieval, retrieval_by_chance
from .similarity import MIN_CLIPS, alignment, similarities
from .subjects import Subject


KERNEL_OF = {"cka_linear": "linear", "cka_rbf": "rbf"}
MIN_GRATINGS = 60  # so that every orientation is in every fold
MAX_DEPTHS = 13  # that are read where none are named
NUM_ATTENTION_CLIPS = 8


@dataclass(frozen=True)
class Settings:
    """How `analyze` looks at encoders.

    Attributes:
        num_clips: of every video.
        frame_stride, resize_factor: as of readouts.
        num_gratings: of each kind, at random but always the same; all for None.
        biased_cka: the estimate that the blockwise paper has, see `alignment`.
        batch_size: videos that are encoded at once.
        num_workers: processes that read videos.
        decode_timeout: seconds before giving up on a video; 0 decodes without a limit.
    """

    num_clips: int = 1
    frame_stride: int = 2
    resize_factor: float = 1.15
    num_gratings: int | None = 600
    biased_cka: bool = False
    batch_size: int = 8
    num_workers: int = 0
    decode_timeout: float = DECODE_TIMEOUT

    def __post_init__(self):
        if self.num_gratings is not None and self.num_gratings < MIN_GRATINGS:
            raise ValueError(f"num_gratings must be at least {MIN_GRATINGS}, got {self.num_gratings}: take more")

    def clips(self, encoder, videos: LabelledVideos) -> TestClips:
        return clips_for(encoder, videos, self.num_clips, self.frame_stride, self.resize_factor, self.decode_timeout)


def depths_of(subject: Subject, encoder, depths: Sequence[int] | None) -> list[int]:
    """Where an encoder is read: at these depths, or by default at all, `MAX_DEPTHS` evenly spread ones if it has more.

    Raises:
        ValueError: for a depth that it does not have.
    """
    num_layers = encoder.config.num_hidden_layers
    if depths is None:
        num_depths = min(num_layers + 1, MAX_DEPTHS)
        return [round(num_layers * number / (num_depths - 1)) for number in range(num_depths)]
    for depth in depths:
        if not 0 <= depth <= num_layers:
            raise ValueError(
                f"depths must be between 0 and {num_layers}, the layers of {subject.name}, got {depth}: leave it out"
            )
    return sorted(set(depths))


class Study:
    """Measures encoders that see the same videos, one after the other.

    Args:
        asked: names of measures.
        videos: that encoders see.
        training: that probes of classes are fitted to; None for cross-validation.
        settings: how.

    Attributes:
        rows: what `analyze` returns.
        chance: what measures are on average without any knowledge, by name.
        encoders: what is on record of each, by name: where it was loaded from, its sizes, the depths that were read.
        failed: {"name", "error"} of videos that could not be read.
    """

    def __init__(self, asked: list[str], videos: LabelledVideos, training: LabelledVideos | None, settings: Settings):
        self.asked, self.videos, self.training, self.settings = asked, videos, training, settings
        self.rows: list[dict] = []
        self.chance: dict[str, float] = {}
        self.encoders: dict[str, dict] = {}
        self.failed: list[dict] = []
        self.num_clips = 0
        self._seen = None  # the videos that the first encoder saw
        self._alignments: dict[str, dict[str, list[torch.Tensor]]] = {}  # measure, name -> per depth

    def add(self, subject: Subject, depths: Sequence[int] | None):
        """Measure one more encoder.

        Raises:
            ValueError: if it cannot be read there, or there are too few clips.
        """
        encoder = subject.load().to("cuda" if torch.cuda.is_available() else "cpu")
        depths = depths_of(subject, encoder, depths)
        clips = self.settings.clips(encoder, self.videos)
        gathered = self._gather(encoder, clips, depths, subject.name)
        self._check_clips(gathered, subject)
        values: dict[str, Sequence[float]] = {}
        for family in dict.fromkeys(MEASURES[name].family for name in self.asked):
            values |= MEASURERS[family](self, subject.name, encoder, clips, gathered, depths)
        for name in self.asked:
            self.rows += [
                {"model": subject.name, "depth": depth, "measure": name, "value": value}
                for depth, value in zip(depths, values[name], strict=True)
                if value is not None
            ]
        sizes = ("num_hidden_layers", "hidden_size", "num_frames", "image_size")
        self.encoders[subject.name] = {
            "path": subject.path,
            "has_random_weights": subject.has_random_weights,
            **{name: getattr(encoder.config, name) for name in sizes},
            "tokens_kept_per_clip": gathered.tokens[0].kept.shape[1],
            "depths": depths,
        }

    def similarities(self) -> list[dict]:
        """CKA of every depth with every depth, of each encoder and of each pair."""
        found = []
        for measure, by_name in self._alignments.items():
            names = list(by_name)
            for place, first in enumerate(names):
                for second in names[place:]:
                    table = similarities(by_name[first], by_name[second])
                    depths = [self.encoders[name]["depths"] for name in (first, second)]
                    found.append(
                        {"measure": measure, "models": [first, second], "depths": depths, "values": table.tolist()}
                    )
        return found

    def _occludes(self, family: str) -> bool:
        return any(MEASURES[name].occludes and MEASURES[name].family == family for name in self.asked)

    def _gather(self, encoder, clips: TestClips, depths: list[int], title: str) -> Gathered:
        batch_size, num_workers = self.settings.batch_size, self.settings.num_workers
        return gather(encoder, clips, depths, batch_size, num_workers, self._occludes("actions"), title)

    def _check_clips(self, gathered: Gathered, subject: Subject):
        if len(gathered.labels) < MIN_CLIPS:
            raise ValueError(
                f"data must have at least {MIN_CLIPS} clips that can be read, got {len(gathered.labels)}: give more "
                "videos, or take more num_clips of each"
            )
        if self._seen is None:
            self._seen, self.failed, self.num_clips = gathered.videos, gathered.failed, len(gathered.videos)
        elif not torch.equal(self._seen, gathered.videos):
            raise ValueError(
                f"data must be the same for all models, got other videos for {subject.name} that could not be read: "
                "remove them (layerlock prepare finds them), or raise decode_timeout"
            )

    # The families of measures: each from its name to a value per depth, None where there is none

    def measure_tokens(self, name, encoder, clips, gathered: Gathered, depths) -> dict:
        found = [statistics.measures() for statistics in gathered.tokens]
        return {measure: [values[measure] for values in found] for measure in found[0]}

    def measure_cka(self, name, encoder, clips, gathered: Gathered, depths) -> dict:
        found = {}
        for measure in KERNEL_OF.keys() & set(self.asked):
            kept = [alignment(means, KERNEL_OF[measure], self.settings.biased_cka) for means in gathered.means]
            self._alignments.setdefault(measure, {})[name] = kept
            following = zip(kept, kept[1:], strict=False)
            found[measure] = [*((first * second).sum().item() for first, second in following), None]
        return found

    def measure_retrieval(self, name, encoder, clips, gathered: Gathered, depths) -> dict:
        self.chance |= retrieval_by_chance(gathered.labels, gathered.videos)
        found = [retrieval(means, gathered.labels, gathered.videos) for means in gathered.means]
        return {measure: [values[measure] for values in found] for measure in found[0]}

    def measure_actions(self, name, encoder, clips, gathered: Gathered, depths) -> dict:
        self.chance["action_accuracy"] = majority_share(gathered.labels)
        if self.training is None:
            check_folds(gathered.labels, gathered.videos, self.videos.class_names)

            def score(features, _):
                return cross_validated_accuracy(features, gathered.labels, gathered.videos)

            fitted = gathered
        else:
            training_clips = self.settings.clips(encoder, self.training)
            fitted = self._gather(encoder, training_clips, depths, f"{name}, train_data")

            def score(features, known):
                return probe_accuracy(known, fitted.labels, features, gathered.labels)

        whole = [score(*pair) for pair in zip(gathered.means, fitted.means, strict=True)]
        found = {"action_accuracy": whole}
        if self._occludes("actions"):
            hidden = [score(*pair) for pair in zip(gathered.patches, fitted.patches, strict=True)]
            found["action_occ_drop"] = list(map(occlusion_drop, whole, hidden))
        return found

    def measure_drifting(self, name, encoder, clips, gathered, depths) -> dict:
        return self._measure_gratings(DRIFTING, name, encoder, depths)

    def measure_double_drifting(self, name, encoder, clips, gathered, depths) -> dict:
        return self._measure_gratings(DOUBLE_DRIFTING, name, encoder, depths)

    def _measure_gratings(self, kind: Gratings, name: str, encoder, depths: list[int]) -> dict:
        occludes = self._occludes(kind.name)
        numbers = kind.chosen(self.settings.num_gratings)
        targets = kind.targets(numbers)
        title = f"{name}, {kind.name}"
        parts = gather_gratings(encoder, kind, numbers, depths, self.settings.batch_size, occludes, title)
        self.chance[f"{kind.name}_accuracy"] = majority_share(targets)
        whole = [cross_validated_accuracy(features, targets) for features in parts[0]]
        found = {f"{kind.name}_accuracy": whole}
        if occludes:
            hidden = [cross_validated_accuracy(features, targets) for features in parts[1]]
            found[f"{kind.name}_occ_drop"] = list(map(occlusion_drop, whole, hidden))
        return found

    def measure_attention(self, name, encoder, clips, gathered: Gathered, depths) -> dict:
        seen = gathered.videos.unique()
        chosen = seen[:: max(1, len(seen) // NUM_ATTENTION_CLIPS)][:NUM_ATTENTION_CLIPS].tolist()
        shown = torch.stack([clips[index]["pixel_values_videos"][0] for index in chosen])
        distances = attention_distances(encoder, shown)
        space, time = ([None if depth == 0 else one[depth - 1].item() for depth in depths] for one in distances.T)
        return {"attention_distance_space": space, "attention_distance_time": time}


MEASURERS = {
    "tokens": Study.measure_tokens,
    "cka": Study.measure_cka,
    "retrieval": Study.measure_retrieval,
    "actions": Study.measure_actions,
    "drifting": Study.measure_drifting,
    "double_drifting": Study.measure_double_drifting,
    "attention": Study.measure_attention,
}
