"""Measures of several encoders that see the same videos.

n clips, D width. A depth is a number of layers passed, 0 the embedded tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..evaluation import TestClips
from ..evaluation.adapters import LabelledVideos
from ..evaluation.any_videos import DECODE_TIMEOUT, clips_for
from ..utils.similarity import MIN_CLIPS, alignment, similarities
from .attention import attention_distances, attention_modules
from .decodability import check_room, cross_validated_accuracy, majority_share, occlusion_drop, probe_accuracy
from .gathering import Gathered, gather, gather_gratings
from .gratings import DOUBLE_DRIFTING, DRIFTING, Gratings
from .measures import MEASURES
from .retrieval import retrieval, retrieval_by_chance
from .subjects import Subject


KERNEL_OF = {"cka_linear": "linear", "cka_rbf": "rbf"}
MIN_GRATINGS = 60  # so that every orientation is in every fold
MAX_DEPTHS = 13  # that are read where none are named
NUM_ATTENTION_CLIPS = 8
NUM_PARTS = {kind.name: kind.num_parts for kind in (DRIFTING, DOUBLE_DRIFTING)}


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


@dataclass(frozen=True)
class Reading:
    """An encoder, and what the clips that it was shown left: `depths` are where it was read."""

    name: str
    encoder: PreTrainedModel
    clips: TestClips
    gathered: Gathered
    depths: list[int]


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
        failed: the errors of videos that could not be read, by name.
    """

    def __init__(self, asked: list[str], videos: LabelledVideos, training: LabelledVideos | None, settings: Settings):
        self.asked, self.videos, self.training, self.settings = asked, videos, training, settings
        self.rows: list[dict] = []
        self.chance: dict[str, float] = {}
        self.encoders: dict[str, dict] = {}
        self.failed: dict[str, str] = {}
        self.num_clips = 0
        self._seen = None  # the videos that the first encoder saw
        self._alignments: dict[str, dict[str, list[torch.Tensor]]] = {}  # measure, name -> per depth

    def check(self, subject: Subject, depths: Sequence[int] | None):
        """Raise a `ValueError` for an encoder that cannot be measured."""
        encoder = subject.load()
        depths_of(subject, encoder, depths)
        size, families = encoder.config.image_size, {MEASURES[name].family for name in self.asked}
        if "attention" in families:
            attention_modules(encoder)
        for family in families:
            if self._occludes(family):
                check_room(size, size, NUM_PARTS.get(family, 1))

    def add(self, subject: Subject, depths: Sequence[int] | None):
        """Measure one more encoder.

        Raises:
            ValueError: if it cannot be read there, or there are too few clips.
        """
        encoder = subject.load().to("cuda" if torch.cuda.is_available() else "cpu")
        depths = depths_of(subject, encoder, depths)
        clips = self.settings.clips(encoder, self.videos)
        gathered = self._gather(encoder, clips, depths, subject.name)
        self._check_clips(gathered, subject, depths)
        reading = Reading(subject.name, encoder, clips, gathered, depths)
        values: dict[str, Sequence[float]] = {}
        for family in dict.fromkeys(MEASURES[name].family for name in self.asked):
            values |= MEASURERS[family](self, reading)
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
        gathered = gather(encoder, clips, depths, batch_size, num_workers, self._occludes("actions"), title)
        self.failed |= {item["name"]: item["error"] for item in gathered.failed}
        return gathered

    def _check_clips(self, gathered: Gathered, subject: Subject, depths: list[int]):
        if len(gathered.labels) < MIN_CLIPS:
            raise ValueError(
                f"data must have at least {MIN_CLIPS} clips that can be read, got {len(gathered.labels)}: give more "
                "videos, or take more num_clips of each"
            )
        for depth, means in zip(depths, gathered.means, strict=True):
            if not means.isfinite().all():
                raise ValueError(
                    f"features of {subject.name} after {depth} layers must be finite, got NaN or inf: it has "
                    "diverged, take an earlier checkpoint"
                )
        if self._seen is None:
            self._seen, self.num_clips = gathered.videos, len(gathered.videos)
        elif not torch.equal(self._seen, gathered.videos):
            raise ValueError(
                f"data must be the same for all models, got other videos for {subject.name} that could not be read: "
                "remove them (layerlock prepare finds them), or raise decode_timeout"
            )

    # The families of measures: each from its name to a value per depth, None where there is none

    def measure_tokens(self, reading: Reading) -> dict:
        found = [statistics.measures() for statistics in reading.gathered.tokens]
        return {measure: [values[measure] for values in found] for measure in found[0]}

    def measure_cka(self, reading: Reading) -> dict:
        found = {}
        for measure, kernel in KERNEL_OF.items():
            if measure in self.asked:
                kept = [alignment(means, kernel, self.settings.biased_cka) for means in reading.gathered.means]
                self._alignments.setdefault(measure, {})[reading.name] = kept
                pairs = zip(kept, kept[1:])  # noqa: B905
                found[measure] = [*(similarities([one], [other]).item() for one, other in pairs), None]
        return found

    def measure_retrieval(self, reading: Reading) -> dict:
        gathered = reading.gathered
        self.chance |= retrieval_by_chance(gathered.labels, gathered.videos)
        found = [retrieval(means, gathered.labels, gathered.videos) for means in gathered.means]
        return {measure: [values[measure] for values in found] for measure in found[0]}

    def measure_actions(self, reading: Reading) -> dict:
        test = reading.gathered
        self.chance["action_accuracy"] = majority_share(test.labels)
        fitted = test
        if self.training is not None:
            clips = self.settings.clips(reading.encoder, self.training)
            fitted = self._gather(reading.encoder, clips, reading.depths, f"{reading.name}, train_data")

        def score(known: torch.Tensor, features: torch.Tensor) -> float:
            if fitted is test:
                return cross_validated_accuracy(features, test.labels, test.videos)
            return probe_accuracy(known, fitted.labels, features, test.labels)

        found = {"action_accuracy": list(map(score, fitted.means, test.means))}
        if self._occludes("actions"):
            hidden = map(score, fitted.patches, test.patches)
            found["action_occ_drop"] = list(map(occlusion_drop, found["action_accuracy"], hidden))
        return found

    def measure_drifting(self, reading: Reading) -> dict:
        return self._measure_gratings(DRIFTING, reading)

    def measure_double_drifting(self, reading: Reading) -> dict:
        return self._measure_gratings(DOUBLE_DRIFTING, reading)

    def _measure_gratings(self, kind: Gratings, reading: Reading) -> dict:
        numbers = kind.chosen(self.settings.num_gratings)
        targets, title = kind.targets(numbers), f"{reading.name}, {kind.name}"
        batch_size, occludes = self.settings.batch_size, self._occludes(kind.name)
        whole, hidden = gather_gratings(reading.encoder, kind, numbers, reading.depths, batch_size, occludes, title)
        self.chance[f"{kind.name}_accuracy"] = majority_share(targets)
        scores = [cross_validated_accuracy(features, targets) for features in whole]
        found = {f"{kind.name}_accuracy": scores}
        if occludes:
            of_patches = [cross_validated_accuracy(features, targets) for features in hidden]
            found[f"{kind.name}_occ_drop"] = list(map(occlusion_drop, scores, of_patches))
        return found

    def measure_attention(self, reading: Reading) -> dict:
        seen = reading.gathered.videos.unique()
        chosen = seen[:: max(1, len(seen) // NUM_ATTENTION_CLIPS)][:NUM_ATTENTION_CLIPS].tolist()
        shown = torch.stack([reading.clips[index]["pixel_values_videos"][0] for index in chosen])
        distances = attention_distances(reading.encoder, shown).T.tolist()
        space, time = ([None if depth == 0 else one[depth - 1] for depth in reading.depths] for one in distances)
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
