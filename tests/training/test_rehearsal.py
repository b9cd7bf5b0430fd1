"""One step of every stage, to see what a run will cost."""

import pytest
import torch
from toy_methods import CHECKPOINTING, METHODS, trainer_parts

from layerlock_hf.training.rehearsal import rehearse


@pytest.mark.parametrize("name", METHODS)
def test_rehearsal_of_every_stage(tmp_path, name):
    rows = rehearse(**trainer_parts(name, tmp_path))
    stages = METHODS[name].stages
    assert [(row["start"], row["num_frozen"]) for row in rows] == [(stage.start, stage.num_frozen) for stage in stages]
    assert all(row["seconds"] > 0 for row in rows)
    assert not any(tmp_path.iterdir())


def test_what_learns_in_every_stage(tmp_path):
    counts = [row["trainable_parameters"] for row in rehearse(**trainer_parts("layerlock", tmp_path))]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] == 32 * 32 + 32  # nothing but the head


def test_it_leaves_the_settings_as_they_are(tmp_path):
    parts = trainer_parts("layerlock", tmp_path, global_batch_size=8)
    before = parts["args"].to_dict()
    rows = rehearse(**parts)
    assert parts["args"].to_dict() == before
    # As long as the steps of two batches each of the run itself
    lengths = [end - row["start"] for row, end in zip(rows, [*(row["start"] for row in rows[1:]), 10], strict=True)]
    for row, length in zip(rows, lengths, strict=True):
        assert row["hours"] == pytest.approx(2 * length * row["seconds"] / 3600)


def test_it_runs_as_the_run_does(tmp_path):
    parts = trainer_parts("layerlock", tmp_path, bf16=True, **{CHECKPOINTING: True})
    dtypes, first = [], parts["model"].encoder.layers[0]
    first.mlp.up.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    num_stages = len(rehearse(**parts))
    # In the first stage twice, the second time recomputed; then in the pass of the context and in that of the target,
    # and before in another of the target, to find its mean
    assert dtypes == (2 + 3 * (num_stages - 1)) * [torch.bfloat16]
