"""What has to be built again around the parameters that learn from a switch on."""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..models.modeling_layerlock_pretraining import LayerLockViTForPretraining
from ..models.objectives import Stage


def rebuild_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, decayed_names: list[str], fresh_parameters: set
):
    """In place, in `named_parameters()` order, because states are matched to parameters by position on resume.

    The moments of parameters that froze, and of those that are fresh, are dropped.
    """
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = set(decayed_names)
    optimizer.param_groups[0]["params"] = [parameter for name, parameter in learning if name in decayed]
    optimizer.param_groups[1]["params"] = [parameter for name, parameter in learning if name not in decayed]
    kept = {parameter for _, parameter in learning} - fresh_parameters
    for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
        del optimizer.state[parameter]
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.grad = None  # a stale gradient would count in the norm that is clipped


def freeze(model: LayerLockViTForPretraining, stage: Stage, frozen_dtype: str | None = None):
    """Let what learns in this stage require gradients. With a dtype, the linear layers of the frozen prefix are kept
    in it: in that of autocast, which casts them (and neither norms nor tables) anyway, no loss and no update
    changes by a bit. What is saved of them is rounded."""
    model.freeze_for(stage)
    for depth, layer in enumerate(model.encoder.layers if frozen_dtype else (), start=1):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.to(getattr(torch, frozen_dtype) if depth <= stage.num_frozen else torch.float32)


def fresh_heads(before: Stage, stage: Stage) -> set[tuple[int, str]]:
    """The heads (depth, name) that a stage uses for targets that the one before it did not have."""
    known = {(objective.read_at, objective.target) for objective in before.objectives}
    return {
        (objective.read_at, objective.target.head)
        for objective in stage.objectives
        if (objective.read_at, objective.target) not in known
    }


def mean_targets(
    model: LayerLockViTForPretraining,
    stage: Stage,
    batches: Iterable[dict],
    teacher: nn.Module | None,
    accelerator: Accelerator,
) -> list[torch.Tensor]:
    """Of every objective the mean target over the batches of all processes, as its head predicts it: one
    (D or P,) each."""
    means = []
    for batch in batches:
        video, *ids = (batch.get(name) for name in ("pixel_values_videos", "context_ids", "target_ids"))
        with accelerator.autocast():
            means.append(model.target_means(video, *ids, stage=stage, teacher=teacher))
    return [accelerator.reduce(torch.stack(parts).mean(dim=0), "mean") for parts in zip(*means, strict=True)]


def rewrap(wrapper: nn.Module, accelerator: Accelerator) -> bool:
    """Construct DDP again in the same object, which the training loop holds in a local variable; True if it was DDP.

    Its buckets are made at construction, so without this the frozen layers would go on being communicated, or hang.
    """
    if not isinstance(wrapper, DistributedDataParallel):
        return False
    kwargs = accelerator.ddp_handler.to_kwargs() if accelerator.ddp_handler else {}
    wrapper.__init__(
        wrapper.module, device_ids=wrapper.device_ids, output_device=wrapper.output_device, init_sync=False, **kwargs
    )
    return True


def discard_a_backward(wrapper: DistributedDataParallel, loss: Callable[[], torch.Tensor]):
    """Run a backward that leaves nothing behind, as the first of a new wrapper.

    DDP lays out its buckets twice: when constructed and after its first backward. From three processes on the two
    layouts sum in another order, and a resumed run would differ from the uninterrupted one in its last bits.
    """
    syncs, wrapper.require_backward_grad_sync = wrapper.require_backward_grad_sync, True
    loss().backward()
    wrapper.zero_grad()
    wrapper.require_backward_grad_sync = syncs
