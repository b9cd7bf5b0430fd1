"""Whole runs of every method: what moves when, resume, accumulation."""

import pytest
import torch
from toy_methods import METHODS, Clips, make_trainer, step_logs, weights
from transformers import TrainerCallback

from layerlock_hf.training import stage_at


# All methods; the slow tests have most of them
SOME_FAST = [
    name if name in ("layerlock", "vjepa", "blockwise") else pytest.param(name, marks=pytest.mark.slow)
    for name in METHODS
]


VARYING = {"clips_per_second", "data_wait_fraction", "peak_memory_gib", "total_flos", "train_runtime"}


class Recorder(TrainerCallback):
    """The weights of model and teacher before and after every step. Added last, it sees each switch done."""

    def __init__(self, trainer):
        self.trainer, self.before, self.after, self.learning = trainer, [], [], []
        self.teacher_before, self.teacher_after = [], []
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.before.append(weights(self.trainer.model))
        if self.trainer.teacher.network is not None:
            self.teacher_before.append(weights(self.trainer.teacher.network))

    def on_step_end(self, args, state, control, **kwargs):
        self.after.append(weights(self.trainer.model))
        self.learning.append({n for n, p in self.trainer.model.named_parameters() if p.requires_grad})
        if self.trainer.teacher.network is not None:
            self.teacher_after.append(weights(self.trainer.teacher.network))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """One recorded run per method, made when first asked for."""
    made = {}

    def record(name):
        if name not in made:
            trainer = make_trainer(name, tmp_path_factory.mktemp("run"))
            made[name] = Recorder(trainer)
            trainer.train()
        return made[name]

    return record


def expected_to_learn(name, stage, parameters, config):
    """By the table of the methods, said in another way than `freeze_for` does."""
    sources = {objective.read_at for objective in stage.objectives}
    deepest, trunk = max(sources), config.decoder == "trunk"
    learning = set()
    for parameter in parameters:
        part, *rest = parameter.split(".")
        if part == "encoder":
            depth = {"embeddings": 0, "layers": -1, "norm": 7}[rest[0]]
            depth = int(rest[1]) + 1 if depth < 0 else depth
            learns = depth > stage.num_frozen if depth else stage.num_frozen == 0
            learns = learns and (deepest == 6 and stage.num_frozen < 6 if depth == 7 else depth <= deepest)
        elif rest[1] == "heads":
            learns = (int(rest[0]), rest[2]) in {(o.read_at, o.target.head) for o in stage.objectives}
        else:
            learns = not trunk and int(rest[0]) in sources
        learning |= {parameter} if learns else set()
    return learning


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_right_parameters_move(recordings, name):
    recorder = recordings(name)
    config = recorder.trainer.model.config
    assert len(recorder.after) == 10
    for step, (before, after) in enumerate(zip(recorder.before, recorder.after, strict=True)):
        stage = stage_at(METHODS[name].stages, step)
        expected = expected_to_learn(name, stage, before, config)
        assert recorder.learning[step] == expected, step
        moved = {parameter for parameter in before if not torch.equal(before[parameter], after[parameter])}
        # The weight of the latents is 0 in the first step, and the bias of their heads with it
        resting = {p for p in expected if step == 0 and name == "mae_and_latents" and ".latents_" in p}
        assert moved - resting == expected - resting, step


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_logs_are_finite(recordings, name):
    rows = step_logs(recordings(name).trainer)
    assert len(rows) == 10
    for step, row in enumerate(rows):
        stage = stage_at(METHODS[name].stages, step)
        assert row["num_frozen"] == stage.num_frozen
        assert all(torch.isfinite(torch.tensor(float(value))) for value in row.values())
        weighted = sum(
            o.weight_at(step) * row[f"{label}/loss"] for o, label in zip(stage.objectives, stage.labels, strict=True)
        )
        assert row["loss"] == pytest.approx(weighted, rel=1e-4)


def test_sequential_blocks_leave_the_deeper_layers_alone(recordings):
    recorder = recordings("blockwise_in_sequence")
    first = recorder.before[0]
    for step, after in enumerate(recorder.after):
        block = min(step // 3, 2)
        for name in (name for name in after if name.startswith("encoder.layers.")):
            layer = int(name.split(".")[2])
            if layer >= 2 * block + 2:
                assert torch.equal(after[name], first[name]), (step, name)
            if layer < 2 * block:
                assert torch.equal(after[name], recorder.before[3 * (layer // 2 + 1)][name]), (step, name)


# ---- the moving teacher


MOMENTA = [0.9 + 0.1 * step / 10 for step in range(10)]


@pytest.mark.parametrize("name", ["vjepa", "vjepa_locked"])
def test_the_teacher_is_the_average_by_hand(recordings, name):
    recorder = recordings(name)
    encoder = {n.removeprefix("encoder."): v for n, v in recorder.before[0].items() if n.startswith("encoder.")}
    assert all(torch.equal(recorder.teacher_before[0][n], v) for n, v in encoder.items())
    average = {n: v.double() for n, v in encoder.items()}
    for step in range(3):
        after, learning = recorder.after[step], recorder.learning[step]
        for n in average:
            if f"encoder.{n}" in learning:
                average[n] = MOMENTA[step] * average[n] + (1 - MOMENTA[step]) * after[f"encoder.{n}"].double()
        for n, value in recorder.teacher_after[step].items():
            torch.testing.assert_close(value.double(), average[n], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["vjepa", "vjepa_locked"])
def test_the_teacher_follows_where_the_encoder_learns(recordings, name):
    recorder = recordings(name)
    for step, (before, after) in enumerate(zip(recorder.teacher_before, recorder.teacher_after, strict=True)):
        moved = {f"encoder.{n}" for n in before if not torch.equal(before[n], after[n])}
        assert moved == {n for n in recorder.learning[step] if n.startswith("encoder.")}, step
        if step:  # nothing else touches it
            assert all(torch.equal(v, recorder.teacher_after[step - 1][n]) for n, v in before.items())


@pytest.mark.parametrize("name", ["vjepa", "vjepa_locked", "salt"])
def test_the_teacher_never_learns(recordings, name):
    teacher = recordings(name).trainer.teacher.network
    assert not teacher.training and not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_a_given_teacher_stays_as_it_is(recordings):
    recorder = recordings("salt")
    first = recorder.teacher_before[0]
    for after in recorder.teacher_after:
        assert all(torch.equal(after[n], first[n]) for n in first)


# ---- resume and accumulation


@pytest.mark.parametrize("name", SOME_FAST)
def test_resume_is_bit_identical(tmp_path, name):
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer = make_trainer(name, tmp_path / "whole", **saving)
    trainer.train()
    whole, rows = weights(trainer.model), step_logs(trainer)
    for step in (3, 6):  # at a switch, and behind another where the method has one
        clips = Clips()
        resumed = make_trainer(name, tmp_path / "resumed", clips)
        with torch.no_grad():  # what a checkpoint does not restore would show
            for module in (resumed.model, resumed.teacher.network if name.startswith("vjepa") else None):
                for parameter in module.parameters() if module is not None else ():
                    parameter.add_(0.1)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        again = weights(resumed.model)
        assert [n for n in whole if not torch.equal(again[n], whole[n])] == []
        if trainer.teacher.network is not None:
            teachers = weights(resumed.teacher.network), weights(trainer.teacher.network)
            assert all(torch.equal(teachers[0][n], teachers[1][n]) for n in teachers[1])
        assert clips.read[:4] == list(range(4 * step, 4 * step + 4))  # skipped clips are not decoded
        for before, after in zip(rows[step:], step_logs(resumed)[step:], strict=True):
            assert {k: v for k, v in after.items() if k not in VARYING} == {
                k: v for k, v in before.items() if k not in VARYING
            }


@pytest.mark.parametrize("name", SOME_FAST)
def test_four_small_batches_equal_a_large_one(tmp_path, name):
    runs = []
    for batch_size in (4, 1):
        trainer = make_trainer(
            name,
            tmp_path,
            per_device_train_batch_size=batch_size,
            global_batch_size=4,
            adam_epsilon=1e-3,  # gradients that are nothing but rounding must not become steps
            diagnostics_steps=0,
        )
        assert trainer.args.gradient_accumulation_steps == 4 // batch_size
        trainer.train()
        teacher = weights(trainer.teacher.network) if trainer.teacher.network is not None else {}
        numbers = [(row["loss"], row["grad_norm"]) for row in step_logs(trainer)]
        runs.append((numbers, weights(trainer.model), teacher))
    for accumulated, whole in zip(runs[1], runs[0], strict=True):
        torch.testing.assert_close(accumulated, whole, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("name", ["blockwise", "blockwise_overlap"])
def test_settling_changes_nothing_but_the_memory(tmp_path, name):
    runs = []
    for settle_blocks in (False, True):
        trainer = make_trainer(name, tmp_path, settle_blocks=settle_blocks, adam_epsilon=1e-3)
        trainer.train()
        runs.append((weights(trainer.model), [(row["loss"], row["grad_norm"]) for row in step_logs(trainer)]))
    torch.testing.assert_close(runs[1], runs[0], atol=1e-5, rtol=1e-4)
