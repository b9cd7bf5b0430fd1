"""A ladder of questions to frozen encoders, from where an object is to how far away everything is.

Every rung is read twice: by ridge regression, which says how easily the answer is read, and by a small readout by
attention, which learns more by itself, from random weights too, and may fail to. So encoders are ranked by ridge.
The last fifth of the clips that probes are fitted to is held out, and chooses the layer that is read; test clips
choose nothing. B clips, N tokens, D width, K values of an answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..data.procedural import MOTIONS
from .attention_probe import ClipAnswers, Question, TokenAnswers, fit_readouts, predict
from .metrics import Measure, SampleScores, intervals
from .probe_clips import ProbeClips
from .probes import HELD_OUT, abs_rel, accuracy, clip_features, encode, fit_and_predict, place_features, r2


MIN_CLIPS = 10  # with an answer, to fit and to test: with fewer, a rung is left out
ATTENTION = "_attention"  # how names of scores end that are read by attention


def _score_classes(predicted: torch.Tensor, targets: torch.Tensor) -> SampleScores:
    is_right = predicted.argmax(dim=1) == targets.argmax(dim=1)
    return {"index": torch.arange(len(targets)), "right": is_right.double()}


def _score_values(predicted: torch.Tensor, targets: torch.Tensor) -> SampleScores:
    predicted, targets = predicted.double(), targets.double()
    sums = {
        "num": torch.ones_like(targets),
        "sum": targets,
        "squares": targets.square(),
        "squared_error": (predicted - targets).square(),
    }
    return {"index": torch.arange(len(targets)), **{name: values.sum(dim=1) for name, values in sums.items()}}


def _score_maps(predicted: torch.Tensor, targets: torch.Tensor) -> SampleScores:
    relative = ((predicted - targets).abs() / targets).double().sum(dim=1)
    return {**_score_values(predicted, targets), "relative": relative}


def _class_metrics(samples: SampleScores, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"accuracy": weights @ samples["right"] / weights.sum(dim=1)}


def _value_metrics(samples: SampleScores, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    num, total, squares, error = (weights @ samples[name] for name in ("num", "sum", "squares", "squared_error"))
    return {"r2": 1 - error / (squares - total.square() / num)}


def _map_metrics(samples: SampleScores, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**_value_metrics(samples, weights), "abs_rel": weights @ samples["relative"] / (weights @ samples["num"])}


def _token_rows(tokens: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
    return tokens.flatten(0, 1)


@dataclass(frozen=True)
class Form:
    """The form of answers, and what follows from it.

    Attributes:
        rows: the features that a ridge regression sees, of tokens (B, N, D) and their grid: one row per answer, or per
            value of it.
        answers: what the readout by attention ends in.
        loss: that it minimises.
        is_standardised: whether it learns answers brought to mean 0 and deviation 1.
        score: what is the higher the better of predictions and answers, to choose by.
        score_samples: sums per clip of predictions and answers, (B, K) each.
        measure: what metrics are made of such sums.
    """

    rows: Callable[[torch.Tensor, tuple[int, int, int]], torch.Tensor]
    answers: type[nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    is_standardised: bool
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    score_samples: Callable[[torch.Tensor, torch.Tensor], SampleScores]
    measure: Measure


_ACCURACY = Measure(_class_metrics, "accuracy", is_higher_better=True)
_R2 = Measure(_value_metrics, "r2", is_higher_better=True)
_ABS_REL = Measure(_map_metrics, "abs_rel", is_higher_better=False)
CLASS = Form(clip_features, ClipAnswers, F.cross_entropy, False, accuracy, _score_classes, _ACCURACY)
VECTOR = Form(place_features, ClipAnswers, F.mse_loss, True, r2, _score_values, _R2)
MAP = Form(_token_rows, TokenAnswers, F.mse_loss, True, lambda a, b: -abs_rel(a, b), _score_maps, _ABS_REL)


@dataclass(frozen=True)
class Scaling:
    """Brings answers to mean 0 and deviation 1, and predictions back."""

    offset: float
    scale: float

    @classmethod
    def of(cls, answers: torch.Tensor) -> "Scaling":
        known = answers[~answers.isnan().any(dim=1)]
        return cls(known.mean().item(), known.std().item() + 1e-6)

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.scale + self.offset


@dataclass(frozen=True)
class Rung:
    """A question to clips.

    Attributes:
        name: how the names of its scores begin.
        title: what is asked, in words.
        scenes: the pair of sets of clips that it is asked about.
        answers: of clips, (B, K); a row with NaN is not asked.
        form: of the answers.
        metrics: what is reported.
    """

    name: str
    title: str
    scenes: str
    answers: Callable[[ProbeClips], torch.Tensor]
    form: Form
    metrics: tuple[str, ...]

    def question(self, answers: torch.Tensor) -> tuple[Question, Scaling]:
        """What a readout learns of answers (B, K), and how to understand what it then says."""
        scaling = Scaling.of(answers) if self.form.is_standardised else Scaling(0.0, 1.0)
        return Question(self.form.answers, (answers - scaling.offset) / scaling.scale, self.form.loss), scaling


def _motions(clips: ProbeClips) -> torch.Tensor:
    return F.one_hot(clips.labels, len(MOTIONS)).float()


RUNGS = (
    Rung("position", "where an object is", "easy", lambda clips: clips.positions, VECTOR, ("r2",)),
    Rung("velocity", "how it moves", "easy", lambda clips: clips.velocities, VECTOR, ("r2",)),
    Rung("future", "where it will be", "easy", lambda clips: clips.futures, VECTOR, ("r2",)),
    Rung("easy_motion", "which of 8 motions, one object", "easy", _motions, CLASS, ("accuracy",)),
    Rung("motion", "which of 8 motions, many objects", "full", _motions, CLASS, ("accuracy",)),
    Rung("depth", "how far things are", "full", lambda clips: clips.metres, MAP, ("abs_rel", "r2")),
)


@dataclass(frozen=True)
class Reading:
    """Predictions for test clips (B, K), and the score of those for held-out clips."""

    predicted: torch.Tensor
    held_out: float


def _with_answer(tokens: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The clips that have one, of (B, N, D) and (B, K)."""
    has_answer = ~answers.isnan().any(dim=1)
    return (tokens, answers) if has_answer.all() else (tokens[has_answer], answers[has_answer])


def read_by_ridge(rungs: Sequence[Rung], fit, test, grid_size: tuple[int, int, int]) -> list[Reading]:
    """Fits one regression per rung; `fit` and `test` are (tokens, answers of each rung)."""
    (tokens, answers), (test_tokens, test_answers) = fit, test
    readings = []
    for rung, known, asked in zip(rungs, answers, test_answers, strict=True):
        (own, known), (test_own, _) = _with_answer(tokens, known), _with_answer(test_tokens, asked)
        features, test_features = (rung.form.rows(part, grid_size) for part in (own, test_own))
        targets = known.reshape(len(features), -1)
        predicted, held_out = fit_and_predict(features, targets, test_features, rung.form.score)
        readings.append(Reading(predicted.reshape(-1, known.shape[1]), held_out))
    return readings


def read_by_attention(rungs: Sequence[Rung], fit, test, grid_size: tuple[int, int, int]) -> list[Reading]:
    """Trains one readout per rung on all but the held-out clips; arguments as of `read_by_ridge`."""
    (tokens, answers), (test_tokens, test_answers) = fit, test
    kept = round(len(tokens) * (1 - HELD_OUT))
    questions, scalings = zip(
        *(rung.question(known[:kept]) for rung, known in zip(rungs, answers, strict=True)), strict=True
    )
    readouts = fit_readouts(tokens[:kept], questions)
    predictions = zip(predict(readouts, tokens[kept:]), predict(readouts, test_tokens), strict=True)
    readings = []
    for rung, scaling, (held_out, predicted), known, asked in zip(
        rungs, scalings, predictions, answers, test_answers, strict=True
    ):
        held_out, targets = _with_answer(scaling.undo(held_out), known[kept:])
        predicted, _ = _with_answer(scaling.undo(predicted), asked)
        readings.append(Reading(predicted, rung.form.score(held_out, targets).item()))
    return readings


READERS = {"": read_by_ridge, ATTENTION: read_by_attention}  # how names of scores end -> what reads the answers


def measured(rung: Rung, predicted: torch.Tensor, test: ProbeClips, ending: str = "") -> dict:
    """The scores of predictions (B', K) for the test clips that have an answer, with their 95% intervals.

    The intervals are of a bootstrap that draws videos: clips of one video are right and wrong together.
    """
    answers = rung.answers(test)
    has_answer = ~answers.isnan().any(dim=1)
    samples, videos = rung.form.score_samples(predicted, answers[has_answer]), test.videos[has_answer].tolist()
    found = intervals(rung.form.measure, samples, [str(video) for video in videos])
    names = {metric: f"{rung.name}_{metric}{ending}" for metric in rung.metrics}
    edges = {name: [found[metric]["low"], found[metric]["high"]] for metric, name in names.items()}
    return {name: found[metric]["value"] for metric, name in names.items()} | {"intervals": edges}


def answerable(rungs: Sequence[Rung], *sets: ProbeClips) -> list[Rung]:
    """The rungs that enough clips of each of these sets have an answer to."""
    return [
        rung for rung in rungs if all((~rung.answers(clips).isnan().any(dim=1)).sum() >= MIN_CLIPS for clips in sets)
    ]


def climb(
    encoder, sets: Mapping[str, tuple[ProbeClips, ProbeClips]], depths: Sequence[int], rungs: Sequence[Rung] = RUNGS
) -> dict:
    """What an encoder scores on every rung whose scenes there are.

    Args:
        encoder: has `tap(video, depths)`, which gives tokens of clips in [0, 1], `grid_size(video)` and `device`.
        sets: by name of the scenes, the clips to fit probes to and those to test them.
        depths: where it is read.
        rungs: what is asked.

    Returns:
        For each rung, as NAME_METRIC by ridge and NAME_METRIC_attention by attention, the test scores of the layer
        that does best on held-out clips, which is NAME_layer and NAME_layer_attention; their 95% `intervals` by the
        same names; and `layers`, the scores of each layer, with those on held-out clips as NAME_METRIC_held_out.
    """
    layers = {depth: {"layer": depth} for depth in depths}
    result, edges = {}, {}
    for scenes, (fit, test) in sets.items():
        asked = answerable([rung for rung in rungs if rung.scenes == scenes], fit, test)
        if not asked:
            continue
        grid_size = encoder.grid_size(fit.clips)
        answers, test_answers = ([rung.answers(clips) for rung in asked] for clips in (fit, test))
        best = {}
        tapped = zip(depths, encode(encoder, fit.clips, depths), encode(encoder, test.clips, depths), strict=True)
        for depth, tokens, test_tokens in tapped:
            for ending, read in READERS.items():
                readings = read(asked, (tokens, answers), (test_tokens, test_answers), grid_size)
                for rung, reading in zip(asked, readings, strict=True):
                    scores = measured(rung, reading.predicted, test, ending)
                    own = scores.pop("intervals")
                    held_out = reading.held_out if rung.form.measure.is_higher_better else -reading.held_out
                    key = f"{rung.name}_{rung.form.measure.main_metric}_held_out{ending}"
                    layers[depth] |= scores | {key: held_out}
                    if (rung, ending) not in best or reading.held_out > best[rung, ending][0]:
                        best[rung, ending] = (reading.held_out, scores | {f"{rung.name}_layer{ending}": depth}, own)
        for _, scores, own in best.values():
            result |= scores
            edges |= own
    return {**result, "intervals": edges, "layers": list(layers.values())}
