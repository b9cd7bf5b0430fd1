"""Pretraining of the LayerLock video ViT: the encoder, its decoders, and the loss of a stage.

B batch, T frames, N tokens of the grid, K context tokens, M target tokens, D width, P pixel values per token.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_layerlock import LayerLockViTConfig
from .modeling_layerlock import LayerLockViTModel, LayerLockViTPreTrainedModel
from .modeling_layerlock_decoders import DECODERS, Head, Predictor
from .objectives import Objective, Pixels, Stage
from .positions_layerlock import take_tokens


@dataclass
class LayerLockViTForPretrainingOutput(ModelOutput):
    """Loss of a stage.

    Args:
        loss: weighted sum of the losses, ().
        losses: one () per objective, unweighted, averaged over the types of mask.
        target_variances: one () per objective: what its loss gives for a constant prediction, the mean of every
            channel in this batch; with `"l2"` the variance of the target. Such a prediction explains
            1 - loss / variance = 0; a variance that falls means collapse.
        predictions: one (B, M, D or P) per type of mask and objective; in the grid's order where every token is
            predicted.
    """

    loss: torch.FloatTensor | None = None
    losses: tuple[torch.FloatTensor, ...] | None = None
    target_variances: tuple[torch.FloatTensor, ...] | None = None
    predictions: tuple[torch.FloatTensor, ...] | None = None


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


class Targets:
    """The targets of one batch, without gradients. One of the whole clip is computed once for all types of mask.

    Args:
        networks: what latents are taken `of`, by name.
        video: (B, T, C, H, W).
        num_tokens: N.
    """

    def __init__(self, networks: dict, video: torch.Tensor, num_tokens: int):
        self.networks, self.video, self.num_tokens = networks, video, num_tokens
        self._whole = {}

    @torch.no_grad()
    def at(self, objective: Objective, ids: torch.Tensor | None) -> torch.Tensor:
        """(B, M) or None for every position -> (B, M, D or P)"""
        target = objective.target
        if objective.patch_fraction < 1:
            return target.compute(self.networks, self.video, ids)
        if target not in self._whole:
            whole = target.compute(self.networks, self.video, None)
            if whole.shape[1] != self.num_tokens:
                raise ValueError(
                    f"the target {target.label} has {whole.shape[1]} tokens, the clip {self.num_tokens}: give the "
                    "teacher the encoder's grid"
                )
            self._whole[target] = whole
        return take_tokens(self._whole[target], ids)


class LayerLockViTForPretraining(LayerLockViTPreTrainedModel):
    """The encoder and its decoders. It is *told* the stage and keeps none.

    >>> model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("tiny"))
    >>> context_ids = torch.rand(1, 512).argsort(dim=1)[:, :26]
    >>> model(torch.rand(1, 16, 3, 64, 64), context_ids).loss.shape
    torch.Size([])
    """

    def __init__(self, config: LayerLockViTConfig):
        super().__init__(config)
        self.encoder = LayerLockViTModel(config)
        self.decoders = nn.ModuleDict(
            {str(depth): DECODERS[config.decoder](config, depth) for depth in config.decoder_depths}
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Head):
            init.normal_(module.weight, std=Head.INIT_STD)
        elif isinstance(module, Predictor):
            init.zeros_(module.mask_tokens)  # as V-JEPA has it

    @property
    def pixel_stage(self) -> Stage:
        """Plain masked autoencoding, what `forward` does unless it is told another stage."""
        return Stage(0, 0, (Objective(self.config.decoder_depths[-1], Pixels()),))

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_ids: torch.Tensor | list[torch.Tensor],
        target_ids: torch.Tensor | list[torch.Tensor] | None = None,
        stage: Stage | None = None,
        teacher: nn.Module | None = None,
        settle_blocks: bool = False,
    ) -> LayerLockViTForPretrainingOutput:
        """Predict the stage's targets from the context tokens.

        Args:
            pixel_values_videos: clips in [0, 1], (B, T, C, H, W).
            context_ids: the tokens that the encoder sees, (B, K), or one such tensor per type of mask: the losses are
                averaged over the types.
            target_ids: the tokens to predict, (B, M) per type of mask, in random order where an objective has a
                `patch_fraction` below 1 and predicts the first ones. All tokens if None.
            stage: what to predict; pixels if None.
            teacher: the network of targets `of="teacher"`; it has the encoder's verb `tap`.
            settle_blocks: in a local stage, backpropagate each block before the next one runs, so that the activations
                of one block exist at a time. The gradients are the same. Not under FSDP, which must see the backward.

        Raises:
            ValueError: if the model cannot do what the stage asks, arguments are missing, or, on a CPU, tokens are
                named that the clips do not have: a GPU would have to be waited for.
        """
        stage = stage or self.pixel_stage
        is_at_hand = type(pixel_values_videos) is torch.Tensor and pixel_values_videos.device.type == "cpu"
        if is_at_hand and not torch.compiler.is_compiling():
            self.check_masks(pixel_values_videos, context_ids, target_ids)
        targets = self._targets(pixel_values_videos, stage, teacher)
        masks, num_tokens = pair_masks(context_ids, target_ids), targets.num_tokens
        settles = settle_blocks and stage.local and torch.is_grad_enabled()
        total, predictions = 0, []
        losses, variances = [0] * len(stage.objectives), [0] * len(stage.objectives)
        for mask_type, (context_ids, target_ids) in enumerate(masks):
            for source, modules, decode in self._read(pixel_values_videos, context_ids, mask_type, stage):
                of_block = 0
                for index, objective in enumerate(stage.objectives):
                    if objective.source != source:
                        continue
                    ids = objective.select(target_ids, num_tokens)
                    prediction = self.decoders[str(source)].heads[objective.target.head](decode(ids))
                    target = targets.at(objective, ids)
                    if target.shape != prediction.shape:
                        raise ValueError(
                            f"the targets {tuple(target.shape)} do not fit the predictions {tuple(prediction.shape)}: "
                            "set teacher_hidden_size"
                        )
                    # In fp32 also under autocast (LayerLock, sec. 3.4)
                    loss = objective.target.error(prediction.float(), target) / len(masks)
                    constant = target.mean(dim=(0, 1), keepdim=True).expand_as(target)
                    of_block = of_block + objective.weight * loss
                    losses[index] = losses[index] + loss.detach()
                    variances[index] = variances[index] + objective.target.error(target, constant) / len(masks)
                    predictions.append(prediction.detach() if settles else prediction)
                total = total + (settle(of_block, modules) if settles else of_block)
        return LayerLockViTForPretrainingOutput(
            loss=total, losses=tuple(losses), target_variances=tuple(variances), predictions=tuple(predictions)
        )

    @torch.no_grad()
    def target_means(
        self,
        pixel_values_videos: torch.Tensor,
        context_ids: torch.Tensor | list[torch.Tensor],
        target_ids: torch.Tensor | list[torch.Tensor] | None = None,
        stage: Stage | None = None,
        teacher: nn.Module | None = None,
    ) -> list[torch.Tensor]:
        """What the best constant prediction is in this batch: one (D or P,) per objective; arguments as of `forward`.

        A head that starts there need not spend a part of its stage on it: latents of a residual stream have means far
        above their deviation.
        """
        stage = stage or self.pixel_stage
        targets = self._targets(pixel_values_videos, stage, teacher)
        means = []
        for objective in stage.objectives:
            ids = [objective.select(ids, targets.num_tokens) for _, ids in pair_masks(context_ids, target_ids)]
            means.append(torch.stack([targets.at(objective, kept).mean(dim=(0, 1)) for kept in ids]).mean(dim=0))
        return means

    def _targets(self, video: torch.Tensor, stage: Stage, teacher: nn.Module | None) -> Targets:
        self.check_stage(stage)
        if stage.needs_teacher and teacher is None:
            raise ValueError(f"the stage that starts at step {stage.start} predicts a teacher's latents: give teacher")
        num_tokens = math.prod(self.encoder.grid_size(video))
        return Targets({"encoder": self.encoder, "teacher": teacher}, video, num_tokens)

    def _read(self, video: torch.Tensor, context_ids: torch.Tensor, mask_type: int, stage: Stage):
        """Run the encoder from source to source: yields each with the modules that learn from it if the stage is
        local, and a function that decodes the context at some positions, (B, M) -> (B, M, D or W)."""
        grid_size = self.encoder.grid_size(video)
        hidden_states, rotation = self.encoder.embed(video, context_ids)
        passed = 0
        for source in stage.sources:
            decoder = self.decoders[str(source)]
            begin, end = passed, decoder.context_depth
            if stage.local:
                passed = max(begin, end - stage.overlap)
                hidden_states = self.encoder.run_layers(hidden_states, rotation, begin, passed)
                beyond_cut = hidden_states.detach()
            context = self.encoder.run_layers(hidden_states, rotation, passed, end)
            decoded = {}  # objectives that predict the same tokens share the decoder's pass

            def decode(ids, decoder=decoder, context=context, decoded=decoded):
                key = None if ids is None else ids.shape[1]
                if key not in decoded:
                    decoded[key] = decoder(self.encoder, context, context_ids, ids, grid_size, mask_type)
                return decoded[key]

            modules = [decoder, *self.encoder.layers[begin:end]]
            modules += [self.encoder.embeddings] if source == stage.sources[0] else []
            modules += [self.encoder.norm] if end == len(self.encoder.layers) else []
            yield source, modules, decode
            hidden_states, passed = (beyond_cut, passed) if stage.local else (context, end)

    def check_masks(
        self,
        pixel_values_videos: torch.Tensor,
        context_ids: torch.Tensor | list[torch.Tensor],
        target_ids: torch.Tensor | list[torch.Tensor] | None = None,
        grid_size: tuple[int, int, int] | None = None,
    ):
        """Raise a `ValueError` if masks were drawn for another grid than these clips have, where it is known, or name
        tokens that they do not have. Waits for the device."""
        own = self.encoder.grid_size(pixel_values_videos)
        if grid_size is not None and tuple(grid_size) != own:
            raise ValueError(
                f"grid_size of the masks must be that of the clips, {own} (time, height, width), got "
                f"{tuple(grid_size)}: make the collator with the grid_size of clips of shape "
                f"{tuple(pixel_values_videos.shape)}"
            )
        for pair in pair_masks(context_ids, target_ids):
            for name, ids in zip(("context_ids", "target_ids"), pair, strict=True):
                if ids is None or ids.numel() == 0:
                    continue
                low, high = (int(bound) for bound in ids.aminmax())
                if low < 0 or high >= math.prod(own):
                    raise ValueError(
                        f"{name} must number the {math.prod(own)} tokens of a grid of {own} from 0 on, "
                        f"got {low if low < 0 else high}: draw the masks for the grid_size of the clips"
                    )

    def check_stage(self, stage: Stage):
        """Raise a `ValueError` if this model cannot do what the stage asks."""
        num_layers = self.config.num_hidden_layers
        if stage.num_frozen > num_layers:
            raise ValueError(
                f"the stage that starts at step {stage.start} freezes {stage.num_frozen} layers, but the ViT has "
                f"{num_layers}"
            )
        if stage.local and self.config.decoder == "trunk":
            raise ValueError("a local stage needs decoder='predictor': the trunk decodes with the last block's layers")
        for objective in stage.objectives:
            if str(objective.source) not in self.decoders:
                raise ValueError(
                    f"the {self.config.decoder} decoder is read at depth {', '.join(self.decoders)}, not at depth "
                    f"{objective.source}"
                )
            if objective.target.head not in self.decoders[str(objective.source)].heads:
                raise ValueError(f"there is no head {objective.target.head}: set latent_head_depths")

    def freeze_for(self, stage: Stage):
        """Let exactly the parameters that learn in this stage require gradients. Idempotent, both ways."""
        self.check_stage(stage)
        self.encoder.freeze(stage.num_frozen)
        self.encoder.freeze_beyond(stage.sources[-1])
        for source, decoder in self.decoders.items():
            used = {objective.target.head for objective in stage.objectives if str(objective.source) == source}
            decoder.requires_grad_(bool(used))
            for name, head in decoder.heads.items():
                head.requires_grad_(name in used)
            if used:
                decoder.freeze_behind(stage.num_frozen)

    @torch.no_grad()
    def reset_head(self, source: int, name: str, generator: torch.Generator) -> nn.Module:
        """Start a head afresh, in place, for a new target ("a new patch-wise linear decoder", LayerLock, sec. 3.3)."""
        head = self.decoders[str(source)].heads[name]
        weight = torch.empty(head.weight.shape).normal_(std=Head.INIT_STD, generator=generator)
        copy_whole(head.weight, weight)
        head.bias.zero_()
        return head

    @torch.no_grad()
    def set_head_bias(self, source: int, name: str, bias: torch.Tensor):
        """Let a head predict `bias` (D or P,), as far as its weights are small."""
        copy_whole(self.decoders[str(source)].heads[name].bias, bias)

    def parameter_breakdown(self) -> dict[str, int]:
        """Number of parameters of each part."""

        def count(*modules):
            return sum(parameter.numel() for module in modules for parameter in module.parameters())

        decoders = self.decoders.values()
        first_decoding = min(decoder.context_depth for decoder in decoders) if self.config.decoder == "trunk" else None
        layers = self.encoder.layers
        return {
            "embeddings": count(self.encoder.embeddings),
            "encoder layers": count(*layers[:first_decoding], self.encoder.norm),
            "decoder layers": count(*layers[first_decoding:]) if first_decoding is not None else 0,
            "decoders": sum(count(decoder) - count(decoder.heads) for decoder in decoders),
            "pixel heads": sum(count(decoder.heads["pixels"]) for decoder in decoders),
            "latent heads": sum(count(decoder.heads) - count(decoder.heads["pixels"]) for decoder in decoders),
        }


def copy_whole(parameter: torch.Tensor, values: torch.Tensor):
    """Copy values that every process has into a parameter, of which it may hold a part only."""
    if isinstance(parameter, DTensor):
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    parameter.copy_(values)


def pair_masks(context_ids, target_ids) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """One pair of context and target tokens per type of mask."""
    if isinstance(context_ids, torch.Tensor):
        return [(context_ids, target_ids)]
    target_ids = [None] * len(context_ids) if target_ids is None else target_ids
    if isinstance(target_ids, torch.Tensor) or len(target_ids) != len(context_ids):
        raise ValueError(f"context_ids has {len(context_ids)} types of mask: give as many target_ids")
    return list(zip(context_ids, target_ids, strict=True))
