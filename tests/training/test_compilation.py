"""Layers are compiled one by one: few graphs however many stages, and the same numbers."""

import copy
import logging

import pytest
import torch
from test_trainer import CHECKPOINTING
from toy_methods import TINY, VJEPA, MaskedClips, step_logs, weights
from transformers import TrainerCallback, VideoMAEConfig, VideoMAEModel, set_seed

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.training import (
    FreezeSchedule,
    LayerLockTrainer,
    LayerLockTrainingArguments,
    as_teacher,
    locked,
    mae,
    teacher_latents,
)


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
# 13 layers, of which 11 freeze one after the other; the width is no number of tokens, or graphs would depend on it
SIZES = {**TINY, "hidden_size": 48, "num_hidden_layers": 13, "num_decoder_layers": 1}
STAGES = locked(mae(13), FreezeSchedule(1, 1, num_freezes=11))


class GraphsCallback(TrainerCallback):
    """How many graphs there are after each step."""

    def __init__(self):
        self.counts = []

    def on_step_end(self, args, state, control, **kwargs):
        self.counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def run(folder, max_steps=12, sizes=SIZES, stages=STAGES, teacher=None, **settings):
    torch._dynamo.utils.counters.clear()
    set_seed(0)
    args = LayerLockTrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=4,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        diagnostics_steps=0,
        switch_warmup_steps=0,
        disable_tqdm=True,
        **settings,
    )
    callback = GraphsCallback()
    model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("tiny", **sizes))
    trainer = LayerLockTrainer(model, args, stages, MaskedClips(), callbacks=[callback], teacher=teacher)
    trainer.train()
    assert type(trainer.model_wrapped) is LayerLockViTForPretraining  # accelerate has compiled nothing as a whole
    return trainer, callback.counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by Dynamo itself
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_twelve_stages_are_few_graphs(tmp_path, caplog):
    torch._dynamo.reset()
    eager, none = run(tmp_path)
    assert not any(none)
    with caplog.at_level(logging.WARNING):
        compiled, counts = run(tmp_path, **COMPILED)
    assert counts[1] <= 6 and set(counts[1:]) == {counts[1]}, counts
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not [record for record in caplog.records if "torch._dynamo" in record.name], caplog.text
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in step_logs(compiled)] == [row[key] for row in step_logs(eager)]
    expected, found = weights(eager.model), weights(compiled.model)
    assert list(found) == list(expected)  # checkpoints are the same
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_with_bf16_checkpointing_and_accumulation(tmp_path):
    settings = {"max_steps": 2, "bf16": True, "gradient_accumulation_steps": 2, CHECKPOINTING: True}
    (eager, _), (compiled, counts) = run(tmp_path, **settings), run(tmp_path, **settings, **COMPILED)
    assert counts[0] > 0
    losses = [[row["loss"] for row in step_logs(trainer)] for trainer in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("depth", [2, 3])
def test_a_compiled_foreign_teacher_is_read_the_same(tmp_path, depth):
    """Within its compiled layers, and after its final norm."""
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "use_mean_pooling": False}
    clips = {"image_size": 16, "patch_size": 4, "num_frames": 4, "tubelet_size": 2}
    set_seed(1)
    model = VideoMAEModel(VideoMAEConfig(hidden_size=48, **sizes, **clips))
    settings = {"max_steps": 4, "stages": teacher_latents(6, depth), "teacher_momentum": 1.0}
    settings["sizes"] = {**TINY, **VJEPA, "teacher_hidden_size": 48}
    torch._dynamo.reset()
    eager, _ = run(tmp_path, teacher=as_teacher(copy.deepcopy(model)), **settings)
    compiled, counts = run(tmp_path, teacher=as_teacher(model), **settings, **COMPILED)
    assert counts[0] > 0 and set(counts[1:]) == {counts[1]}, counts
    assert not torch._dynamo.utils.counters["graph_break"]
    assert [row["loss"] for row in step_logs(compiled)] == [row["loss"] for row in step_logs(eager)]
