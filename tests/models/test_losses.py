"""The losses of a stage by hand, settled and not."""

import pytest
import torch
from torch import nn

from layerlock_hf.models import Latents, Objective, Pixels, Stage
from layerlock_hf.models.losses_layerlock import StageLosses


OBJECTIVES = (Objective(2, Pixels()), Objective(4, Latents(1, loss="l1"), weight=0.5), Objective(4, Pixels(loss="l1")))
STAGE = Stage(0, 1, OBJECTIVES, local=True)


def run(settles):
    """Two types of mask, a block at 2 and one at 4, each a layer on tokens of its own: sums and layers."""
    generator = torch.Generator().manual_seed(0)
    layers = {2: nn.Linear(3, 3, bias=False), 4: nn.Linear(3, 3, bias=False)}
    sums, pairs = StageLosses(STAGE, 2, settles), []
    for layer in layers.values():
        nn.init.normal_(layer.weight, generator=generator)
    for _ in range(2):
        for source, layer in layers.items():
            for objective in OBJECTIVES:
                if objective.read_at == source:
                    prediction = layer(torch.rand(2, 5, 3, generator=generator))
                    target = torch.rand(2, 5, 3, generator=generator)
                    sums.add(objective, prediction, target)
                    pairs.append((objective, prediction, target))
            sums.complete_block([layer])
    return sums, layers, pairs


def test_sums_by_hand():
    sums, _, pairs = run(settles=False)
    for objective in OBJECTIVES:
        mine = [(prediction, target) for other, prediction, target in pairs if other == objective]
        losses = [objective.target.error(prediction, target) for prediction, target in mine]
        torch.testing.assert_close(sums.losses[objective], sum(losses) / 2)
        means = [target.mean(dim=(0, 1), keepdim=True).expand_as(target) for _, target in mine]
        variances = [objective.target.error(target, mean) for (_, target), mean in zip(mine, means, strict=True)]
        torch.testing.assert_close(sums.target_variances[objective], sum(variances) / 2)
        assert not sums.losses[objective].requires_grad
    expected = sum(objective.weight * sums.losses[objective] for objective in OBJECTIVES)
    torch.testing.assert_close(sums.total, expected)
    assert all(found is given for found, (_, given, _) in zip(sums.predictions, pairs, strict=True))


def test_settled_blocks_have_the_same_gradients():
    gradients = []
    for settles in (False, True):
        sums, layers, pairs = run(settles)
        assert all(prediction.requires_grad == (not settles) for prediction in sums.predictions)
        if settles:
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                pairs[0][1].sum().backward()
        (3 * sums.total).backward()
        gradients.append([layer.weight.grad for layer in layers.values()])
    torch.testing.assert_close(*gradients)


def test_targets_of_another_width():
    with pytest.raises(ValueError, match=r"\(1, 2, 4\) do not fit the predictions \(1, 2, 3\): set teacher_hidden"):
        StageLosses(STAGE, 1, False).add(OBJECTIVES[0], torch.ones(1, 2, 3), torch.ones(1, 2, 4))
