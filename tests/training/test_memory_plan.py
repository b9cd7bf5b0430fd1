"""What is counted of a step's memory, against what a step holds."""

import pytest
import torch

from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training import FreezeSchedule, locked, mae
from layerlock_hf.training.memory_plan import activation_bytes, state_bytes


STAGES = locked(mae(6), FreezeSchedule(1, 1, 2, num_freezes=3))


@pytest.fixture
def batch():
    """Six clips of `tiny_config`, a quarter of their tokens seen."""
    return {
        "pixel_values_videos": torch.rand(6, 4, 3, 16, 16),
        "context_ids": torch.rand(6, 32).argsort(dim=1)[:, :8],
        "target_ids": torch.rand(6, 32).argsort(dim=1),
    }


def test_planned_state_is_what_training_holds(tiny_config, batch):
    model = LayerLockViTForPretraining(tiny_config)
    model.freeze_for(STAGES[1])
    planned = state_bytes(model)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning)
    model(**batch, stage=STAGES[1]).loss.backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert planned == {
        "weights that learn": sum(parameter.nbytes for parameter in learning),
        "frozen": sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad),
        "gradients": sum(parameter.grad.nbytes for parameter in learning),
        "moments": sum(moment.nbytes for moment in moments),
    }
    # Five rows on two ranks: each holds three
    assert state_bytes(torch.nn.Linear(7, 5, bias=False), 2)["gradients"] == 4 * 3 * 7


@pytest.mark.parametrize("index, bf16", [(0, False), (2, True)])
def test_planned_activations_are_what_autograd_keeps(tiny_config, batch, index, bf16):
    """Within 1%, on real tensors, and with another number of clips than the plan looks at."""
    stage = STAGES[index]
    masks = [(batch["context_ids"][:1], batch["target_ids"][:1])]
    per_clip, per_step = activation_bytes(tiny_config, stage, masks, bf16)
    model = LayerLockViTForPretraining(tiny_config)
    model.freeze_for(stage)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):  # in fp32, as on CUDA
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch, stage=stage).loss
    num_bytes = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    assert loss.requires_grad
    assert 6 * per_clip + per_step == pytest.approx(num_bytes, rel=0.01)
    # Checkpointing keeps the inputs of the layers that learn, and what one of them keeps
    less, _ = activation_bytes(tiny_config, stage, masks, bf16, checkpointing=True)
    assert 0.1 * per_clip < less <= per_clip
