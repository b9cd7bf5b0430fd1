"""The measures of representations by name: what pictures call them, and what they need."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers.utils import logging

from .tokens import OUTLIER_FACTOR


logger = logging.get_logger(__name__)

ALL = "all"


@dataclass(frozen=True)
class Measure:
    """
    Attributes:
        title: of its panel.
        axis: what its values are, with their unit.
        family: measures of one family are had together.
        is_usual: whether it is taken where none is asked for; the others take much longer.
        occludes: whether clips have to be encoded once more, occluded.
    """

    title: str
    axis: str
    family: str
    is_usual: bool = True
    occludes: bool = False


LOST = "share of the accuracy that is lost"
MEASURES = {
    "feature_std": Measure("Deviation of features", "mean std over clips", "tokens"),
    "content_fraction": Measure("Content of tokens", "share of variance between clips", "tokens"),
    "effective_rank": Measure("Effective rank of tokens", "directions", "tokens"),
    "participation_ratio": Measure("Participation ratio of tokens", "directions", "tokens"),
    "alpha_req": Measure("alpha-ReQ of tokens", "exponent of the spectrum", "tokens"),
    "rankme": Measure("RankMe of clips", "directions", "tokens"),
    "cosine_within": Measure("Likeness of tokens of one clip", "mean cosine", "tokens"),
    "cosine_between": Measure("Likeness of tokens of different clips", "mean cosine", "tokens"),
    "token_norm": Measure("Norm of tokens", "mean L2 norm", "tokens"),
    "norm_outliers": Measure("Tokens of outlying norm", f"share beyond {OUTLIER_FACTOR} medians", "tokens"),
    "cka_linear": Measure("Likeness to the next depth", "linear CKA", "cka"),
    "cka_rbf": Measure("Likeness to the next depth", "RBF CKA", "cka"),
    "hit_rate_1": Measure("Retrieval, nearest clip", "hit rate at 1", "retrieval"),
    "hit_rate_5": Measure("Retrieval, 5 nearest clips", "hit rate at 5", "retrieval"),
    "hit_rate_10": Measure("Retrieval, 10 nearest clips", "hit rate at 10", "retrieval"),
    "mean_average_precision": Measure("Retrieval, whole ranking", "mean average precision", "retrieval"),
    "action_accuracy": Measure("Decodability of classes", "accuracy", "actions"),
    "action_occ_drop": Measure("OccDrop of classes", LOST, "actions", False, True),
    "drifting_accuracy": Measure("Decodability of gratings", "mean accuracy of 5 targets", "drifting", False),
    "drifting_occ_drop": Measure("OccDrop of gratings", LOST, "drifting", False, True),
    "double_drifting_accuracy": Measure(
        "Decodability of double gratings", "mean accuracy of 9 targets", "double_drifting", False
    ),
    "double_drifting_occ_drop": Measure("OccDrop of double gratings", LOST, "double_drifting", False, True),
    "attention_distance_space": Measure(
        "Reach of attention in the frame", "mean distance (pixels)", "attention", False
    ),
    "attention_distance_time": Measure("Reach of attention in time", "mean distance (frames)", "attention", False),
}
FAMILIES = tuple(dict.fromkeys(measure.family for measure in MEASURES.values()))


def choose_measures(asked: Sequence[str] | None, refusals: Mapping[str, str]) -> list[str]:
    """The names of the measures to take, in the order of `MEASURES`.

    Args:
        asked: names of measures or of families; "all" for all that can be had; None for the usual ones of these.
        refusals: why families cannot be had, by name.

    Raises:
        ValueError: for a name that is none, or one that cannot be had.
    """
    named = set(asked or ()) - {ALL}
    known = [*MEASURES, *FAMILIES]
    for name in sorted(named - set(known)):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"these are {', '.join(known)}"
        raise ValueError(f"measures must be names of measures or families, or {ALL}, got {name}: {hint}")
    chosen, left_out = [], {}
    for name, measure in MEASURES.items():
        is_named = bool({name, measure.family} & named)
        if is_named and measure.family in refusals:
            raise ValueError(f"{refusals[measure.family]}, or leave {name} out")
        if is_named or (measure.is_usual if asked is None else ALL in asked):
            if measure.family in refusals:
                left_out[measure.family] = refusals[measure.family]
            else:
                chosen.append(name)
    for family, refusal in left_out.items():
        logger.warning(f"measures of {family} are left out: {refusal}")
    return chosen
