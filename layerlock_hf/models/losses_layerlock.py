"""The losses of a stage: of each objective, and their weighted sum, whose blocks may be settled one by one.

B batch, M target tokens, D width, P pixel values per token.
"""

import torch
from torch import nn

from .objectives import Objective, Stage


class SettledLoss(torch.autograd.Function):
    """A loss whose gradients are known already: the graph behind it is gone, `backward` only hands them out."""

    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_output):
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(gradient.mul_(grad_output.to(gradient.dtype)) for gradient in gradients)


def settle(loss: torch.Tensor, modules: list[nn.Module]) -> torch.Tensor:
    """Backpropagate now to the parameters of these modules that learn and that the loss depends on, free the
    activations, and return a loss that brings the gradients along.

    A caller that later calls `backward`, be it through DDP or gradient accumulation, finds them as usual.
    """
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    reached = [pair for pair in zip(parameters, gradients, strict=True) if pair[1] is not None]
    parameters, gradients = zip(*reached, strict=True)
    # Detached: an input that requires gradients would lead the caller's backward into the graph that is gone
    return SettledLoss.apply(loss.detach(), gradients, *parameters)


class StageLosses:
    """What is summed over the objectives, the blocks and the types of mask of a stage.

    Args:
        stage: tells the objectives.
        num_mask_types: how many types of mask the losses are averaged over.
        settles: whether to backpropagate every block once it is complete.

    Attributes:
        total: weighted sum of the losses, ().
        losses: of each objective, unweighted, ().
        target_variances: of each objective, what its loss gives for the best constant prediction, ().
        predictions: one (B, M, D or P) per type of mask and objective.
    """

    def __init__(self, stage: Stage, num_mask_types: int, settles: bool):
        self._num_mask_types, self._settles = num_mask_types, settles
        self.total, self._of_block = 0, 0
        self.losses: dict[Objective, torch.Tensor] = dict.fromkeys(stage.objectives, 0)
        self.target_variances: dict[Objective, torch.Tensor] = dict.fromkeys(stage.objectives, 0)
        self.predictions: list[torch.Tensor] = []

    def add(self, objective: Objective, prediction: torch.Tensor, target: torch.Tensor):
        """One objective under one type of mask, 2 x (B, M, D or P).

        Raises:
            ValueError: if prediction and target differ in shape.
        """
        if target.shape != prediction.shape:
            raise ValueError(
                f"the targets {tuple(target.shape)} do not fit the predictions {tuple(prediction.shape)}: set "
                "teacher_hidden_size"
            )
        # In fp32 also under autocast (LayerLock, sec. 3.4)
        loss = objective.target.error(prediction.float(), target) / self._num_mask_types
        constant = target.mean(dim=(0, 1), keepdim=True).expand_as(target)
        variance = objective.target.error(target, constant) / self._num_mask_types
        self._of_block = self._of_block + objective.weight * loss
        self.losses[objective] = self.losses[objective] + loss.detach()
        self.target_variances[objective] = self.target_variances[objective] + variance
        self.predictions.append(prediction.detach() if self._settles else prediction)

    def complete_block(self, modules: list[nn.Module]):
        """What has been added since the last block is all that these modules learn from, in a local stage."""
        self.total = self.total + (settle(self._of_block, modules) if self._settles else self._of_block)
        self._of_block = 0
