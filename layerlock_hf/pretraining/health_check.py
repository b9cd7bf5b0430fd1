"""A look at the health of a run while it trains."""

from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.utils import logging

from ..analysis.health import judge
from ..analysis.health_rules import COLLAPSING, DIVERGING, Verdict
from ..analysis.stage_logs import loss_rows
from ..hub.documents import STAGES, read_json
from .logs import read_log


logger = logging.get_logger(__name__)

# A stage that was too short is over, and waiting for data costs time but spoils nothing
STOPPING = (COLLAPSING, DIVERGING)


class RunUnhealthy(RuntimeError):
    """A run was stopped because it had gone wrong; the message is for the user."""


class HealthCheck(TrainerCallback):
    """Judges the log so far every so many steps. Warns once of each kind of trouble in a stage; if it is to stop the
    run, saves a checkpoint, and raises `RunUnhealthy` on all processes once training has ended.

    It comes after `Reports`, whose log a resumed run goes on with.

    Args:
        folder: OUT.
        steps: optimizer steps between looks.
        stops: whether a collapse or a divergence that still holds ends the run.
    """

    def __init__(self, folder: Path, steps: int, stops: bool):
        self.folder, self.steps, self.stops = folder, steps, stops
        self._rows, self._told, self._reason = [], set(), None

    def on_train_begin(self, args, state, control, **kwargs):
        self._reason = None
        if state.is_world_process_zero:
            self._rows = read_log(self.folder)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self._rows.append({"step": state.global_step, **logs})

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps or state.global_step >= state.max_steps:
            return
        reasons = [None]  # to stop, as process 0 has the log
        if state.is_world_process_zero and loss_rows(self._rows):
            stages = read_json(self.folder / STAGES)  # to which the run may have appended
            troubles = [one for one in judge(self._rows, stages, state.max_steps).verdicts if one.is_trouble]
            self._warn(troubles)
            reasons = [_told(one) for one in troubles if one.name in STOPPING and one.holds][:1] or reasons
        if self.stops:
            broadcast_object_list(reasons)
            if reasons[0] is not None:
                self._reason = (
                    f"stopped after step {state.global_step:,}, which has been saved (health_stop): {reasons[0]}"
                )
                control.should_save = control.should_training_stop = True

    def _warn(self, troubles: list[Verdict]):
        for one in troubles:
            if (one.name, one.stage) not in self._told:
                self._told.add((one.name, one.stage))
                logger.warning(_told(one))

    def on_train_end(self, args, state, control, **kwargs):
        if self._reason is not None:
            raise RunUnhealthy(self._reason)


def _told(verdict: Verdict) -> str:
    return f"{verdict.name}, in stage {verdict.stage}: {verdict.text}. {verdict.advice}"
