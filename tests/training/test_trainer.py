import json
import math
import os
from pathlib import Path

import forked
import pytest
import torch
import toy_methods
from toy_methods import CHECKPOINTING, MaskedClips
from toy_trainer import LATENTS, STAGES, SWITCHES, arguments, make_trainer, weights
from transformers import TrainerCallback, set_seed
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from layerlock_hf.models import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.training import (
    FreezeSchedule,
    Latents,
    LayerLockTrainer,
    Objective,
    Stage,
    locked,
    mae,
    stage_at,
)
from layerlock_hf.training.run_file import CheckpointRefused


class Recorder(TrainerCallback):
    """Snapshots after the switch and after the step. Added last, it sees each switch done."""

    def __init__(self, trainer):
        self.trainer, self.before, self.after, self.states, self.learning, self.kept = trainer, [], [], [], [], []
        trainer.add_callback(self)

    def optimizer_state(self):
        optimizer = getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)
        names = {parameter: name for name, parameter in self.trainer.model.named_parameters()}
        return {names[p]: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}

    def on_step_begin(self, args, state, control, **kwargs):
        self.before.append(weights(self.trainer.model))
        self.kept.append(self.optimizer_state())

    def on_step_end(self, args, state, control, **kwargs):
        self.after.append(weights(self.trainer.model))
        self.states.append(self.optimizer_state())
        self.learning.append({n for n, p in self.trainer.model.named_parameters() if p.requires_grad})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tiny_sizes):
    """One recorded run, with learned decoding tokens."""
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes, decoding_tokens="learned")
    trainer = make_trainer(config, tmp_path_factory.mktemp("run"))
    recorder = Recorder(trainer)
    trainer.train()
    return recorder


def test_frozen_parameters_stay_and_the_others_move(recorded):
    assert len(recorded.after) == 10
    for step, (before, after) in enumerate(zip(recorded.before, recorded.after, strict=True)):
        stage = stage_at(STAGES, step)
        learning = {f"{LATENTS}.weight", f"{LATENTS}.bias"} if step >= 3 else {"decoders.6.heads.pixels.weight"}
        assert learning <= recorded.learning[step]
        for name in before:
            moved = not torch.equal(before[name], after[name])
            assert moved == (name in recorded.learning[step]), (step, name)
            if name.startswith("encoder.layers."):
                assert moved == (int(name.split(".")[2]) >= stage.num_frozen), (step, name)
            if name.startswith("encoder.embeddings."):
                assert moved == (stage.num_frozen == 0)


def test_nothing_but_a_new_head_changes_at_a_switch(recorded):
    for step in range(1, 10):
        changed = {
            name
            for name, tensor in recorded.before[step].items()
            if not torch.equal(tensor, recorded.after[step - 1][name])
        }
        expected = {f"{LATENTS}.weight", f"{LATENTS}.bias"} if step in SWITCHES else set()
        assert changed == expected, step
    heads = [recorded.before[step][f"{LATENTS}.weight"] for step in SWITCHES]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])
    assert all(head.std().item() == pytest.approx(0.02, rel=0.1) for head in heads)


def biases_at_starts(trainer, clips_per_step):
    """The bias of the head of every stage before its first step, and the mean of its target over that step's clips."""
    recorder = Recorder(trainer)
    trainer.train()
    starts = (0, *SWITCHES)
    for step in starts:
        trainer.model.load_state_dict(recorder.before[step])
        stage = stage_at(STAGES, step)
        clips = [trainer.train_dataset[step * clips_per_step + index] for index in range(clips_per_step)]
        batch = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
        batch["pixel_values_videos"] = batch["pixel_values_videos"].float() / 255
        (mean,) = trainer.model.target_means(**batch, stage=stage)
        name = f"decoders.6.heads.{stage.objectives[0].target.head}.bias"
        yield recorder.before[step][name], mean


@pytest.mark.parametrize("accumulation", [1, 2])
def test_fresh_heads_start_at_the_mean_of_their_target(tiny_config, tmp_path, accumulation):
    settings = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    settings["train_sampling_strategy"] = "sequential"
    for bias, mean in biases_at_starts(make_trainer(tiny_config, tmp_path, **settings), 4):
        assert bias.abs().max() > 0.05
        torch.testing.assert_close(bias, mean)


def test_fresh_heads_start_at_zero_if_asked_to(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config, tmp_path, heads_start_at_mean=False, train_sampling_strategy="sequential")
    assert all(not bias.any() for bias, _ in biases_at_starts(trainer, 4))


def test_optimizer_holds_what_learns(recorded):
    sizes = []
    for state, learning in zip(recorded.states, recorded.learning, strict=True):
        assert set(state) == learning
        sizes.append(sum(entry["exp_avg"].numel() for entry in state.values()))
    by_stage = [sizes[step] for step in (0, *SWITCHES)]
    assert all(after < before for before, after in zip(by_stage, by_stage[1:], strict=False)), by_stage
    for group_step in range(1, 10):
        kept, previous = recorded.kept[group_step], recorded.states[group_step - 1]
        fresh = {f"{LATENTS}.weight", f"{LATENTS}.bias"} if group_step in SWITCHES else set()
        assert set(kept) == recorded.learning[group_step] - fresh
        for name, entry in kept.items():  # what goes on learning keeps its moments
            assert all(torch.equal(value, previous[name][key]) for key, value in entry.items()), name
    optimizer = recorded.trainer.optimizer
    assert {p for group in optimizer.param_groups for p in group["params"]} == {
        p for p in recorded.trainer.model.parameters() if p.requires_grad
    }


def test_weight_decay_is_for_matrices(tiny_config, tmp_path):
    tiny_config.update({"decoding_tokens": "learned", "position_embedding": "learned"})
    trainer = make_trainer(tiny_config, tmp_path)
    trainer.create_optimizer()
    decayed, exempt = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.5, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in exempt["params"]} == {1, 3}


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_is_bit_identical(tiny_config, tmp_path, accumulation):
    kwargs = {
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    trainer = make_trainer(tiny_config, tmp_path / "whole", **kwargs)
    trainer.train()
    whole = weights(trainer.model)
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    for step in range(1, 10) if accumulation == 1 else (3, 4):
        resumed = make_trainer(tiny_config, tmp_path / "resumed", **{**kwargs, "save_strategy": "no"})
        with torch.no_grad():  # what a checkpoint does not restore would show
            resumed.model.decoders["6"].heads["latents"].weight.add_(1)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        again = weights(resumed.model)
        assert [name for name in whole if not torch.equal(again[name], whole[name])] == [], step
        assert [row["learning_rate"] for row in resumed.state.log_history if "learning_rate" in row] == rates
        assert resumed.state.total_flos == trainer.state.total_flos


def test_resume_refuses_other_stages(tiny_config, tmp_path):
    make_trainer(tiny_config, tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    record = json.loads((checkpoint / "layerlock.json").read_text())
    assert [stage["start"] for stage in record["stages"]] == [0, 3, 5, 7]
    assert [row["objectives"][0]["source"] for row in record["stages"]] == 4 * [6]  # as old checkpoints have it
    assert record["stages"][1]["is"] == "from step 3 on freezes 2 layers and predicts layer_2"
    others = locked(mae(6), FreezeSchedule(4, 2, 2, num_freezes=3), patch_fraction=0.5)
    with pytest.raises(ValueError, match="other stages"):
        make_trainer(tiny_config, tmp_path / "b", others).train(resume_from_checkpoint=str(checkpoint))
    kept = locked(mae(6), FreezeSchedule(3, 2, 2, num_freezes=3), predict_latents=False)
    with pytest.raises(ValueError, match="other stages"):
        make_trainer(tiny_config, tmp_path / "b", kept).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "layerlock.json").unlink()
    with pytest.raises(ValueError, match="layerlock.json"):
        make_trainer(tiny_config, tmp_path / "b").train(resume_from_checkpoint=str(checkpoint))


def test_resume_refuses_another_model(tiny_config, tmp_path):
    make_trainer(tiny_config, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    tiny_config.layer_norm_eps = 1e-3  # fits the weights and would go unnoticed
    with pytest.raises(ValueError, match="another model.*layer_norm_eps") as error:
        make_trainer(tiny_config, tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "rope_axis_fractions" not in str(error.value)  # equal, though JSON makes a list of it


@pytest.mark.parametrize("max_steps", [10, 4])
def test_a_finished_run_is_not_trained_further(tiny_config, tmp_path, caplog, max_steps):
    trainer = make_trainer(tiny_config, tmp_path, save_strategy="steps", save_steps=10)
    trainer.train()
    before, logs = weights(trainer.model), trainer.state.log_history
    resumed = make_trainer(tiny_config, tmp_path, max_steps=max_steps)
    with torch.no_grad():
        resumed.model.decoders["6"].heads["latents"].weight.add_(1)
    caplog.clear()
    assert resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10")).global_step == 10
    assert f"nothing is left to train: step 10 of max_steps={max_steps} is done" in caplog.text
    after = weights(resumed.model)
    assert [name for name in before if not torch.equal(after[name], before[name])] == []
    assert resumed.state.log_history == logs[:10]  # without a summary of no steps


def test_checkpointing_changes_nothing(tiny_config, tmp_path):
    runs = []
    for checkpointing in (False, True):
        trainer = make_trainer(tiny_config, tmp_path, **{CHECKPOINTING: checkpointing})
        calls = []
        trainer.model.encoder.layers[-1].norm2.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.train()
        logs = [row for row in trainer.state.log_history if "grad_norm" in row]
        runs.append(([row["loss"] for row in logs], [row["grad_norm"] for row in logs], weights(trainer.model)))
        # Ten steps, in three of them also the target's pass, and once more to find its mean; recomputed in the seven
        # in which something below learns
        assert len(calls) == (21 if checkpointing else 14)
    for plain, checkpointed in zip(*runs, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_accumulation_equals_a_larger_batch(tiny_config, tmp_path):
    results = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        trainer = make_trainer(
            tiny_config,
            tmp_path,
            per_device_train_batch_size=batch_size,
            global_batch_size=4,
            adam_epsilon=1e-3,  # gradients that are nothing but rounding must not become steps
        )
        assert trainer.args.gradient_accumulation_steps == accumulation
        trainer.train()
        logs = [row for row in trainer.state.log_history if "grad_norm" in row]
        results.append(([row["loss"] for row in logs], [row["grad_norm"] for row in logs], weights(trainer.model)))
    for whole, accumulated in zip(*results, strict=True):
        torch.testing.assert_close(accumulated, whole, atol=1e-4, rtol=1e-3)


def test_logs(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config, tmp_path)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert [row["stage"] for row in logs] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert [row["num_frozen"] for row in logs] == [0, 0, 0, 2, 2, 4, 4, 6, 6, 6]
    for row in logs:
        name = "pixels" if row["stage"] == 0 else f"layer_{row['num_frozen']}"
        assert {key.split("/")[0] for key in row if "/" in key} == {name}
        assert row[f"{name}/loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert row[f"{name}/explained_variance"] == pytest.approx(
            1 - row[f"{name}/loss"] / row[f"{name}/target_variance"]
        )
        assert row["clips_per_second"] > 0 and 0 < row["data_wait_fraction"] < 1
    # Uniform bytes have a variance of 1/12 once they are in [0, 1]
    assert logs[0]["pixels/target_variance"] == pytest.approx(1 / 12, rel=0.05)
    flops = [row["total_flops"] for row in logs]
    steps = [after - before for before, after in zip([0, *flops], flops, strict=False)]
    assert steps[0] == steps[2] and steps[3] == steps[4]


def test_logs_are_means_over_the_steps_since_the_last(tiny_config, tmp_path):
    losses = {}
    for every in (1, 3):
        trainer = make_trainer(tiny_config, tmp_path, max_steps=3, logging_steps=every)
        trainer.train()
        losses[every] = [row["pixels/loss"] for row in trainer.state.log_history if "grad_norm" in row]
    assert losses[3] == [pytest.approx(sum(losses[1]) / 3)]


class BrokenClips(MaskedClips):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "pixel_values_videos": torch.full((4, 3, 16, 16), math.nan)}


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config, tmp_path, dataset=BrokenClips())
    with pytest.raises(RuntimeError, match="the loss is nan.*predicts pixels"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_clips_of_bytes_become_floats(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config, tmp_path)
    prepared = trainer._prepare_inputs({"pixel_values_videos": torch.tensor([0, 255], dtype=torch.uint8)})
    assert prepared["pixel_values_videos"].tolist() == [0.0, 1.0]
    half = torch.tensor([0.5])
    assert torch.equal(trainer._prepare_inputs({"pixel_values_videos": half})["pixel_values_videos"], half)


def test_plain_mae_is_the_default(tiny_config, tmp_path):
    set_seed(0)
    trainer = LayerLockTrainer(
        LayerLockViTForPretraining(tiny_config), arguments(tmp_path, max_steps=2), train_dataset=MaskedClips()
    )
    trainer.train()
    assert trainer.stages == mae(6)
    assert trainer.state.log_history[0]["stage"] == 0


def test_stages_that_the_model_cannot_do(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="num_frozen must be at most 6, .* got 7"):
        make_trainer(tiny_config, tmp_path, [*mae(6), Stage(3, 7, (Objective(6, Latents(1)),))])
    with pytest.raises(ValueError, match="num_frozen must not fall"):
        make_trainer(tiny_config, tmp_path, [STAGES[0], STAGES[2], Stage(9, 2, STAGES[1].objectives)])
    with pytest.raises(ValueError, match="read_at must be .* got 5"):
        make_trainer(tiny_config, tmp_path, mae(5))


def train_on_other_grids(folder, grids):
    """Each process draws the masks for a grid of its own; the clips have (2, 4, 4)."""
    rank = os.environ.get("RANK", "0")
    trainer = toy_methods.make_trainer("mae", folder, max_steps=3)
    trainer.data_collator.grid_size = grids[int(rank)]
    before = weights(trainer.model)
    try:
        trainer.train()
    except ValueError as error:
        assert trainer.state.global_step == 0 and all(
            torch.equal(weight, before[name]) for name, weight in weights(trainer.model).items()
        )
        (Path(folder) / f"error-{rank}").write_text(str(error))


@pytest.mark.parametrize("grid", [(2, 2, 2), (2, 8, 8)])  # whose ids all exist, and some of whose do not
def test_masks_of_another_grid_are_refused(tmp_path, grid):
    train_on_other_grids(tmp_path, [grid])
    message = (tmp_path / "error-0").read_text()
    assert "must be that of the clips, (2, 4, 4) (time, height, width), got " + str(grid) in message


@pytest.mark.slow
def test_masks_of_another_grid_on_one_process_end_all(tmp_path):
    assert forked.finish(forked.start(2, train_on_other_grids, tmp_path, [(2, 4, 4), (2, 2, 2)])) == [0, 0]
    assert all("got (2, 2, 2)" in (tmp_path / f"error-{rank}").read_text() for rank in range(2))


def test_clipping_is_off_unless_asked_for_and_then_counted(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config, tmp_path / "off")
    trainer.train()
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert (
        trainer.args.max_grad_norm == 0 and len(norms) == 10 and "clipped_fraction" not in trainer.state.log_history[0]
    )
    # Up to the first step that is clipped the run is the same
    largest = max(norms[:5])
    trainer = make_trainer(tiny_config, tmp_path / "on", max_grad_norm=0.999 * largest)
    trainer.train()
    clipped = [row["clipped_fraction"] for row in trainer.state.log_history if "grad_norm" in row]
    first = norms.index(largest)
    assert clipped[: first + 1] == [0.0] * first + [1.0]
    trainer = make_trainer(tiny_config, tmp_path / "rows", max_grad_norm=1e-6, logging_steps=5)
    trainer.train()
    assert {row["clipped_fraction"] for row in trainer.state.log_history if "grad_norm" in row} == {1.0}
    with pytest.raises(ValueError, match="max_grad_norm must be at least 0, got -1"):
        make_trainer(tiny_config, tmp_path / "no", max_grad_norm=-1)


def test_a_new_stage_is_announced(tiny_config, tmp_path, caplog):
    make_trainer(tiny_config, tmp_path).train()
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert said == [
        f"step {step}: layers 1 to {layer} frozen, predicts layer_{layer}; losses of different targets do not "
        "compare, see explained_variance"
        for step, layer in zip(SWITCHES, (2, 4, 6), strict=True)
    ]
    caplog.clear()
    stages = locked(mae(6), FreezeSchedule(3, 2, num_freezes=1), predict_latents=False)
    make_trainer(tiny_config, tmp_path / "pixels", stages).train()
    assert "step 3: layer 1 frozen, still predicts pixels" in caplog.text


@pytest.mark.parametrize("pixels", [torch.full((4, 3, 16, 16), 255.0), torch.randn(4, 3, 16, 16)])
def test_pixels_of_another_scale_are_refused(tiny_config, tmp_path, pixels):
    class Scaled(MaskedClips):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"pixel_values_videos": pixels}

    with pytest.raises(ValueError, match=r"must be bytes, or floats in \[0, 1\], got torch.float32"):
        make_trainer(tiny_config, tmp_path, dataset=Scaled()).train()


def test_checkpoints_hold_the_processor(tiny_config, tmp_path):
    processor = LayerLockVideoProcessor.from_config(tiny_config, frame_stride=3)
    args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    model = LayerLockViTForPretraining(tiny_config)
    LayerLockTrainer(model, args, train_dataset=MaskedClips(), processing_class=processor).train()
    for step in (1, 2):
        assert AutoVideoProcessor.from_pretrained(tmp_path / f"checkpoint-{step}").frame_stride == 3


def test_the_stage_that_differs_is_shown(tiny_config, tmp_path):
    make_trainer(tiny_config, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    stages = locked(mae(6), FreezeSchedule(3, 3, 2, num_freezes=3), patch_fraction=0.5)
    message = (
        "other stages: stage 2 was 'from step 5 on freezes 4 layers .*', but is now 'from step 6 on freezes 4 layers"
    )
    with pytest.raises(CheckpointRefused, match=message):
        make_trainer(tiny_config, tmp_path, stages, max_steps=4).train(resume_from_checkpoint="auto")
