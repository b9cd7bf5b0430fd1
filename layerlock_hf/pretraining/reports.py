"""What a run of pretraining leaves beside its model and checkpoints."""

import uuid
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.utils import logging

from ..data import BadVideos
from ..hub.documents import METRICS, SETTINGS, STAGES, read_json
from ..models import Stage
from ..training.run_file import target_label
from ..utils.files import write_aside
from ..utils.outputs import read_lines
from ..utils.records import json_text, write_record


logger = logging.get_logger(__name__)

BAD_VIDEOS = "bad_videos.jsonl"
REPORTS = (STAGES, SETTINGS, METRICS, BAD_VIDEOS)


class Reports(TrainerCallback):
    """Writes `stages.json` and `settings.json`, and every log to `metrics.jsonl` with the number of bad videos so far.

    A fresh run empties what an earlier one left in OUT, but not before training begins: until then the user may have
    to be told of an error.

    Args:
        folder: OUT.
        stages: of the run so far, which may append to them.
        rows: of `stages.json`, of all stages that there may be; their starts do not count.
        record: of the run, to which `settings.json` adds an id, by which a repository knows whose it is.
        bad_videos: that training met.
    """

    def __init__(self, folder: Path, stages: list[Stage], rows: list[dict], record: dict, bad_videos: BadVideos):
        self.folder, self.stages, self.record, self.bad_videos = folder, stages, record, bad_videos
        self.rows = {(row["num_frozen"], row["target"]): row for row in rows}
        self.num_told = self.num_stages_written = 0

    def _write_stages(self):
        rows = [self.rows[one.num_frozen, target_label(one)] | {"start": one.start} for one in self.stages]
        write_record(self.folder / STAGES, rows)
        self.num_stages_written = len(rows)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._write_stages()
            before = read_json(self.folder / SETTINGS) if state.global_step else None
            record = {"run_id": (before or {}).get("run_id", uuid.uuid4().hex), **self.record}
            write_record(self.folder / SETTINGS, record)
            if state.global_step == 0:
                for name in (METRICS, BAD_VIDEOS):
                    (self.folder / name).write_text("")
            elif (self.folder / METRICS).is_file():
                # What a run logged after the checkpoint that it resumes from is logged again
                kept = [line for line in read_lines(self.folder / METRICS) if line["step"] <= state.global_step]
                with write_aside(self.folder / METRICS) as aside:
                    aside.write_text("".join(json_text(line) + "\n" for line in kept))
        # The others read videos from here on: what they report must not be emptied
        PartialState().wait_for_everyone()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and len(self.stages) != self.num_stages_written:
            self._write_stages()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            logs["bad_videos"] = self.bad_videos.count()
            if logs["bad_videos"] > self.num_told:
                logger.warning(self.bad_videos.summary())
                self.num_told = logs["bad_videos"]
            with (self.folder / METRICS).open("a") as file:
                file.write(json_text({"step": state.global_step, **logs}) + "\n")
