"""A run that decides itself when to freeze: the same on any number of processes, and after a kill."""

import pytest
import torch
from toy_methods import weights
from toy_trainer import make_trainer

from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.training import AutoFreezing, mae
from layerlock_hf.training.settling import Movement, SettlingRule


STEPS = 60
# Weights of so small a model hardly move: layers settle at different times by these limits
RULE = SettlingRule(max_drift=0.05, max_growth=0.5)


def plan_of(**changes) -> AutoFreezing:
    given = {"counts": (1, 2, 3), "first_step": 6, "last_step": 50, "min_interval": 3, "every": 3, "rule": RULE}
    return AutoFreezing(**given | changes)


def auto_trainer(tiny_sizes, output_dir, plan=None, **settings):
    torch.manual_seed(0)
    config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes)
    settings = {"max_steps": STEPS, "learning_rate": 3e-3, "weight_decay": 0.0} | settings
    plan = plan_of() if plan is None else plan
    return make_trainer(config, output_dir, stages=mae(6), freezing=plan, **settings)


@pytest.fixture(scope="module")
def finished(tiny_sizes, tmp_path_factory):
    """A run to the end, with a checkpoint at every tenth step."""
    trainer = auto_trainer(tiny_sizes, tmp_path_factory.mktemp("auto"), save_strategy="steps", save_steps=10)
    trainer.train()
    return trainer


def freezings(trainer) -> list[tuple[int, int]]:
    return [(stage.start, stage.num_frozen) for stage in trainer.stages[1:]]


def test_layers_freeze_in_order_of_depth_within_the_limits(finished):
    steps, counts = zip(*freezings(finished), strict=True)
    assert counts == (1, 2, 3)[: len(counts)]
    assert all(6 <= step <= 50 and step % 3 == 0 for step in steps)
    assert all(after - before >= 3 for before, after in zip(steps, steps[1:], strict=False))


def test_a_layer_that_froze_had_settled_and_before_it_had_not(finished):
    rows = {row["step"]: row for row in finished.state.log_history if "projected_drift/layer_1" in row}

    def history(layer, step):
        earlier = [rows[one] for one in sorted(rows) if one <= step]
        return [
            Movement(row[f"projected_drift/layer_{layer}"], row[f"projected_growth/layer_{layer}"]) for row in earlier
        ]

    allowed = 6
    for step, count in freezings(finished):
        assert RULE.reason_to_wait(count, history(count, step)) is None
        for earlier in range(allowed, step, 3):
            assert RULE.reason_to_wait(count, history(count, earlier)) is not None
        allowed = step + 3


def test_a_resumed_run_decides_as_if_it_had_never_ended(finished, tiny_sizes, tmp_path):
    (first, _), *_ = freezings(finished)
    for step in (10 * (first // 10), 10 * (first // 10 + 1)):  # before and after the first layer froze
        if not step:
            continue
        resumed = auto_trainer(tiny_sizes, tmp_path / str(step))
        resumed.train(resume_from_checkpoint=f"{finished.args.output_dir}/checkpoint-{step}")
        assert freezings(resumed) == freezings(finished)
        ours, theirs = weights(resumed.model), weights(finished.model)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
