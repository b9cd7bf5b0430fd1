"""A run as its folder records it, read once for all sections of the page."""

import functools
import time
from pathlib import Path

from ..analysis.runs import PlannedRun
from ..analysis.stage_logs import loss_rows, median_speed
from ..hub.documents import METRICS, SETTINGS, STAGES, progress, read_json, read_object
from ..pretraining.exporting import holds_its_end
from ..pretraining.planning import recorded_run
from ..utils.outputs import read_lines
from .clips import Clips, find_clips
from .snapshots import Snapshot, find_snapshots


class Run:
    """A run of `layerlock pretrain`, finished or not.

    Args:
        folder: its OUT.
        data: videos to show, as for `load_videos`; None for those that it was trained on.

    Attributes:
        record: content of `settings.json`.

    Raises:
        ValueError: if the folder is none of such a run.
    """

    def __init__(self, folder: Path, data: str | None = None):
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist: check the spelling"
            raise ValueError(f"RUN must be the folder of a run, got {folder}, which {what}")
        if not (folder / SETTINGS).is_file():
            raise ValueError(
                f"RUN must be a folder of `layerlock pretrain`, got {folder}, which has no {SETTINGS}: has the run "
                "begun to train?"
            )
        self.folder, self.data = folder, data
        self.record = read_object(folder / SETTINGS)

    # Read when they are asked for: what is damaged costs the sections that need it

    @functools.cached_property
    def stages(self) -> list[dict]:
        """Rows of `stages.json`."""
        return read_json(self.folder / STAGES) or []

    @functools.cached_property
    def log(self) -> list[dict]:
        """All lines of the log so far."""
        return read_lines(self.folder / METRICS) if (self.folder / METRICS).is_file() else []

    @functools.cached_property
    def rows(self) -> list[dict]:
        """Those of them that hold losses."""
        return loss_rows(self.log)

    @property
    def step(self) -> int:
        """The last one that was logged."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def name(self) -> str:
        """Of its folder, which says more than where that lies."""
        return self.folder.resolve().name

    @property
    def max_steps(self) -> int | None:
        return self.record.get("max_steps")

    @property
    def is_finished(self) -> bool:
        return self.step == self.max_steps and holds_its_end(self.folder)

    @property
    def idle_seconds(self) -> float:
        """Since the last line of the log."""
        return max(0.0, time.time() - (self.folder / METRICS).stat().st_mtime)

    @property
    def clips_per_second(self) -> float | None:
        """The median over the log."""
        return median_speed(self.rows)

    @functools.cached_property
    def progress(self) -> dict:
        """`step`, `max_steps`, `clips`, and as far as the log tells `seconds` and `total_flops`."""
        return progress(self.folder, self.step, self.record)

    @functools.cached_property
    def planned(self) -> PlannedRun:
        """Model, stages and masks, built again from the settings."""
        return recorded_run(self.folder)[0]

    @functools.cached_property
    def clips(self) -> Clips:
        """That pictures are made of."""
        sources = self.record.get("data", {}).get("sources", [])
        return find_clips(self.record.get("settings", {}), self.planned.config, self.data, sources)

    @property
    def snapshots(self) -> list[Snapshot]:
        """The models that it has kept."""
        return self._found_snapshots[0]

    @property
    def left_out(self) -> list[str]:
        """Which of them cannot be shown, and why."""
        return self._found_snapshots[1]

    @functools.cached_property
    def _found_snapshots(self) -> tuple[list[Snapshot], list[str]]:
        return find_snapshots(self.folder, self.stages)
