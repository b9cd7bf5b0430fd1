"""What a run left goes to the Hub: `layerlock push`."""

from contextlib import ExitStack
from pathlib import Path

from ..hub.client import check_repo_id, connect, full_name
from ..hub.collecting import update_collection
from ..hub.documents import RESULTS, SETTINGS, title_of
from ..hub.evaluation_files import choice, task_of
from ..hub.pushing import Pushed, Revision, push_revisions
from ..hub.repository import PushFolder, link_or_copy
from ..training.checkpoints import STAGES_FOLDER
from .exporting import READOUT_MODEL, Source, check_choice, find_source, number_of, write_repository


INTERVAL = ("value", "low", "high")
NOTE_LENGTH = 500  # characters that a note in a collection may have


def push(
    run: str | Path,
    repo_id: str,
    what: str | None = None,
    checkpoint: int | str | None = None,
    dtype: str | None = None,
    private: bool | None = None,
    stages: bool = False,
    collection: str | None = None,
    replaces: bool = False,
    token: str | None = None,
) -> dict[str, list[Pushed]]:
    """Push what a run left to the Hub, as complete repositories. What is there already is not sent again: after a
    failure the same call goes on.

    >>> push("runs/demo/layerlock", "me/layerlock-demo", stages=True)  # doctest: +SKIP

    Args:
        run, what, checkpoint, dtype: as of `export`.
        repo_id: "org/name", or a name in the user's namespace.
        private: whether new repositories are; None for the default of the namespace.
        stages: also every stage that the run has kept (`save_stages`), as a revision "stage-K": the model as it was
            when stage K began.
        collection: title of a collection, made or updated, of the model and the readouts that lie in the run, each
            pushed to a repository of its own, "org/name-FOLDER".
        replaces: whether the repository may hold another run, whose files go.
        token: of the Hub; None for that of HF_TOKEN or `hf auth login`.

    Returns:
        What was pushed, by repository.

    Raises:
        PushFailed: if the Hub refuses or does not answer, or the repository holds another run.
        ValueError: as `export`.
    """
    api = connect(token)
    repo_id, pushed, items = full_name(api, repo_id), {}, []
    with ExitStack() as stack:
        for name, revisions, documents in plan(stack, Path(run), repo_id, what, checkpoint, dtype, stages, collection):
            run_id = documents.get(SETTINGS, {}).get("run_id")
            pushed[name] = push_revisions(revisions, name, private, token, run_id, replaces)
            items.append((name, note_of(documents)))
    if collection is not None:
        update_collection(collection, repo_id.partition("/")[0], items, private, token)
    return pushed


def plan(
    stack: ExitStack,
    run: Path,
    repo_id: str,
    what: str | None,
    checkpoint: int | str | None,
    dtype: str | None,
    stages: bool,
    collection: str | None,
) -> list[tuple[str, list[Revision], dict]]:
    """The repositories to push: their names, revisions, and what is on record of the model that `main` shows.

    Args:
        stack: that deletes their folders when it is closed.
        run, repo_id, what, checkpoint, dtype, stages, collection: as of `push`.

    Raises:
        ValueError: as `push`.
    """
    check_repo_id(repo_id)
    sources = [(name, find_source(run, name)) for name in (kept_stages(run) if stages else ())]
    sources.append((None, find_source(run, checkpoint)))
    for _, source in sources:
        check_choice(source, what, dtype)
    home = Path(stack.enter_context(PushFolder(run)))

    def revision(name: str, source: Source, tag: str | None, what: str | None) -> Revision:
        folder = home / f"{name.replace('/', '--')}-{tag or 'main'}"
        folder.mkdir()
        write_repository(source, folder, what, dtype, name, link_or_copy)
        return Revision(folder, title_of(source.documents), tag)

    plans = [(repo_id, [revision(repo_id, source, tag, what) for tag, source in sources], source.documents)]
    for folder in readouts_of(run) if collection is not None else ():
        name, source = f"{repo_id}-{folder.name}", find_source(folder)
        check_repo_id(name, f"collection: rename {folder}, which names its repository. That")
        plans.append((name, [revision(name, source, None, None)], source.documents))
    return plans


def kept_stages(run: Path) -> list[str]:
    """The stages of which a run has kept the model, in order.

    Raises:
        ValueError: if there are none.
    """
    names = [path.name for path in sorted(run.glob(f"{STAGES_FOLDER}/stage-*"), key=number_of)]
    if not names:
        raise ValueError(
            f"stages: {run} has kept the model of no stage: train with --save_stages true, or push without --stages"
        )
    return names


def readouts_of(run: Path) -> list[Path]:
    """The sweeps of readouts that lie in the folder of a run."""
    return [path.parent for path in sorted(run.glob(f"*/{RESULTS}")) if (path.parent / READOUT_MODEL).is_dir()]


def note_of(documents: dict) -> str:
    """What a collection says of a model."""
    if RESULTS not in documents:
        return f"The encoder, {title_of(documents)}"[:NOTE_LENGTH]
    results = documents[RESULTS]
    metric = task_of(results).metrics[0]
    best = results["best"]["metrics"][metric.key]
    value, low, high = ("–" if best[name] is None else metric.form.format(best[name]) for name in INTERVAL)
    return f"{results['dataset']}: {metric.name} {value} [{low}, {high}], {choice(results)}"[:NOTE_LENGTH]
