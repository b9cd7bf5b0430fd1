"""What encoders represent at each depth: `layerlock analyze representations`."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..evaluation.adapters import LabelledVideos
from ..evaluation.any_videos import check_disjoint, read_any_videos
from ..utils.outputs import check_output
from ..utils.records import without_nan, write_record
from .decodability import check_folds, check_scikit_learn
from .gratings import DOUBLE_DRIFTING, DRIFTING
from .measures import MEASURES, choose_measures
from .representation_plots import plot_depths, plot_similarities
from .study import Settings, Study
from .subjects import Subject, find_subject, stages_of


RESULTS, TABLE, DEPTHS_PICTURE = "representations.json", "representations.csv", "depths.png"
COLUMNS = ("model", "depth", "measure", "value")
GRATINGS = (DRIFTING, DOUBLE_DRIFTING)


def analyze(
    data: str,
    models: Mapping[str, str] | None = None,
    run: str | Path | None = None,
    output_dir: str | Path | None = None,
    depths: Sequence[int] | None = None,
    measures: Sequence[str] | None = None,
    dataset: str | None = None,
    train_data: str | None = None,
    max_videos: int | None = 1000,
    settings: Settings | None = None,
) -> list[dict]:
    """Measure the representations of encoders at each depth, one encoder after the other.

    >>> rows = analyze("videos", {"mae": "runs/demo/mae", "untrained": "runs/demo/mae@random"})  # doctest: +SKIP

    Args:
        data: videos, as of `read_any_videos`.
        models: from names to a folder or Hub id, FOLDER@stage-K of a run that kept its stages, or PATH@random, the
            same architecture with random weights.
        run: a run, all kept stages of which are looked at, and its end.
        output_dir: folder for representations.json, representations.csv and pictures; nothing is written by default.
        depths: numbers of layers passed; by default all, at most `MAX_DEPTHS` of them.
        measures: see `choose_measures`.
        dataset: what `data` is, see `read_any_videos`.
        train_data: labelled videos to fit probes of classes to; by default probes are cross-validated in `data`.
        max_videos: at most so many of either; None for all.
        settings: how they are looked at.

    Returns:
        A row {"model", "depth", "measure", "value"} for each model, depth and measure that there is.

    Raises:
        ValueError: naming what is wrong.
    """
    settings = settings or Settings()
    subjects = [find_subject(name, place) for name, place in (models or {}).items()]
    subjects += stages_of(run) if run is not None else []
    _check_subjects(subjects)
    if output_dir is not None:
        check_output(Path(output_dir), [RESULTS, TABLE, DEPTHS_PICTURE])
    videos = read_any_videos(data, dataset, "test", max_videos)
    training = None if train_data is None else _training_videos(train_data, dataset, max_videos, videos)
    if training is not None:
        videos = videos.relabelled(training.class_names)
    asked = choose_measures(measures, _refusals(videos, training))
    study = Study(asked, videos, training, settings)
    for subject in subjects:  # before any is measured, which may take hours
        study.check(subject, depths)
    for subject in subjects:
        study.add(subject, depths)
    if output_dir is not None:
        _write(study, Path(output_dir), data, is_sequence=run is not None and not models)
    return study.rows


def _check_subjects(subjects: list[Subject]):
    if not subjects:
        raise ValueError("models must name at least one encoder, got none: give models or a run")
    names = [subject.name for subject in subjects]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"models must have distinct names, got {name} twice: choose another")


def _training_videos(data: str, dataset: str | None, max_videos: int | None, test: LabelledVideos) -> LabelledVideos:
    videos = read_any_videos(data, dataset, "train", max_videos)
    if not videos.class_names or not test.class_names:
        raise ValueError("train_data must be labelled, as data must be, got no labels: leave it out")
    check_disjoint(videos, test)
    return videos


def _refusals(videos: LabelledVideos, training: LabelledVideos | None) -> dict[str, str]:
    """Why families of measures cannot be had of these videos on this machine."""
    found = {}
    if not videos.class_names:
        refusal = "data must have labels, got none: give a list with a column label, or name the dataset"
        found = dict.fromkeys(("retrieval", "actions"), refusal)
    elif training is None:
        try:
            check_folds(videos.labels, videos.class_names)
        except ValueError as error:
            found["actions"] = str(error)
    try:
        check_scikit_learn()
    except ValueError as error:
        found |= dict.fromkeys(("actions", *(kind.name for kind in GRATINGS)), str(error))
    return found


def _write(study: Study, folder: Path, data: str, is_sequence: bool):
    """The rows as a table, everything as JSON, and the pictures."""
    tables = study.similarities()
    settings = study.settings
    content = {
        "models": study.encoders,
        "data": {
            "source": data,
            "num_videos": len(study.videos.labels),
            "num_clips": study.num_clips,
            "num_gratings": {kind.name: len(kind.chosen(settings.num_gratings)) for kind in GRATINGS},
            "cka": "biased" if settings.biased_cka else "unbiased",
            "failed": study.failed,
        },
        "measures": {name: {"title": MEASURES[name].title, "unit": MEASURES[name].axis} for name in study.asked},
        "chance": {name: study.chance[name] for name in study.asked if name in study.chance},
        "rows": study.rows,
        "similarities": tables,
    }
    write_record(folder / RESULTS, content)
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(without_nan(study.rows))
    if study.rows:  # there may be none, as of attention at depth 0
        plot_depths(study.rows, study.chance, is_sequence, folder / DEPTHS_PICTURE)
    for measure in dict.fromkeys(table["measure"] for table in tables):
        shown = [table for table in tables if table["measure"] == measure]
        title = f"{MEASURES[measure].axis} of {study.num_clips} clips, {content['data']['cka']} estimate"
        plot_similarities(shown, title, folder / f"{measure}.png")
