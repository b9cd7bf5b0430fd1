"""Which encoders are looked at, as users name them: checkpoints, stages of runs, and controls."""

from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed

from ..evaluation import load_encoder
from ..training.checkpoints import STAGES_FOLDER


RANDOM = "random"
STAGE = "stage-"
END = "end"  # what the end of a run is called beside its stages


@dataclass(frozen=True)
class Subject:
    """An encoder and what it is called.

    Attributes:
        name: in tables and pictures.
        path: folder or Hub id.
        has_random_weights: whether only its architecture is taken, as a control.
    """

    name: str
    path: str
    has_random_weights: bool = False

    def load(self):
        """The frozen encoder.

        Raises:
            ValueError: if it cannot be read.
        """
        if self.has_random_weights:
            set_seed(0)
        return load_encoder(self.path, random_weights=self.has_random_weights)


def find_subject(name: str, place: str) -> Subject:
    """The encoder that PATH, PATH@stage-K (its weights when stage K began) or PATH@random stands for.

    Raises:
        ValueError: if the run has kept no such stage, or the end after @ is neither.
    """
    path, _, part = place.rpartition("@")
    if not path or Path(place).expanduser().is_dir():
        return Subject(name, place)
    if part == RANDOM:
        return Subject(name, path, has_random_weights=True)
    if not part.startswith(STAGE):
        raise ValueError(f"models must be NAME=PATH, PATH@{STAGE}K or PATH@{RANDOM}, got {place!r}: what is {part}?")
    folder = Path(path).expanduser() / STAGES_FOLDER / part
    if not folder.is_dir():
        kept = ", ".join(one.name for one in _stage_folders(Path(path).expanduser())) or "none"
        raise ValueError(
            f"models: {part} must be one of the stages that {path} has kept ({kept}), got {place!r}: runs keep "
            "them by --save_stages true"
        )
    return Subject(name, str(folder))


def stages_of(run: str | Path) -> list[Subject]:
    """The encoder of a run when each of its stages began, and at the end.

    Raises:
        ValueError: if the run has kept no stages.
    """
    run = Path(run).expanduser()
    folders = _stage_folders(run)
    if not folders:
        raise ValueError(
            f"run must be a folder of a run that has kept its stages, got {run}, which has no "
            f"{STAGES_FOLDER}/{STAGE}0: train with --save_stages true, or give models"
        )
    return [*(Subject(folder.name, str(folder)) for folder in folders), Subject(END, str(run))]


def _stage_folders(run: Path) -> list[Path]:
    folders = [path for path in run.glob(f"{STAGES_FOLDER}/{STAGE}*") if path.name.removeprefix(STAGE).isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix(STAGE)))
