"""Pretraining of the LayerLock video ViT: the encoder, its decoders, and the loss of a stage.

B batch, T frames, N tokens of the grid, K context tokens, M target tokens, D width, P pixel values per token.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_layerlock import LayerLockViTConfig
from .losses_layerlock import StageLosses
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
                    f"the target {target.label} must have {self.num_tokens} tokens, as the clip has, got "
                    f"{whole.shape[1]}: give the teacher the grid of the encoder"
                )
            self._whole[target] = whole
        return take_tokens(self._whole[target], ids)


class Block:
    """The encoder up to a depth at which predictions are read, run on what is seen under one type of mask.

    Args:
        objectives: those that are read there, in the order of the stage.
        target_ids: what they predict, (B, M), or None for every position.
        modules: what learns from them, if the stage is local.
        heads: of the decoder, by name.
        decode: runs the decoder on the context, with `target_ids` (B, M) or None -> (B, M, D or W).
    """

    def __init__(
        self,
        objectives: list[Objective],
        target_ids: torch.Tensor | None,
        modules: list[nn.Module],
        heads: nn.ModuleDict,
        decode: Callable[..., torch.Tensor],
    ):
        self.objectives, self.target_ids, self.modules = objectives, target_ids, modules
        self._heads, self._decode = heads, decode
        self._decoded = {}  # objectives that predict the same tokens share the decoder's pass

    def predict(self, head: str, ids: torch.Tensor | None) -> torch.Tensor:
        """(B, M) or None for every position -> (B, M, D or P)"""
        key = None if ids is None else ids.shape[1]
        if key not in self._decoded:
            self._decoded[key] = self._decode(target_ids=ids)
        return self._heads[head](self._decoded[key])


class LayerLockViTForPretraining(LayerLockViTPreTrainedModel):
    """The encoder and its decoders. It is *told* the stage and keeps none.

    Examples:
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
        masks = pair_masks(context_ids, target_ids)
        targets = self._targets(pixel_values_videos, stage, teacher)
        sums = StageLosses(stage, len(masks), settles=settle_blocks and stage.local and torch.is_grad_enabled())
        for block in self._blocks(pixel_values_videos, masks, stage):
            for objective in block.objectives:
                ids = objective.select(block.target_ids, targets.num_tokens)
                sums.add(objective, block.predict(objective.target.head, ids), targets.at(objective, ids))
            sums.complete_block(block.modules)
        return LayerLockViTForPretrainingOutput(
            loss=sums.total,
            losses=tuple(sums.losses.values()),
            target_variances=tuple(sums.target_variances.values()),
            predictions=tuple(sums.predictions),
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

    def tap(self, video: torch.Tensor, depths: list[int]) -> list[torch.Tensor]:
        """The encoder's tokens at several depths: (B, T, C, H, W) -> one (B, N, D) per depth."""
        return self.encoder.tap(video, depths)

    def _targets(self, video: torch.Tensor, stage: Stage, teacher: nn.Module | None) -> Targets:
        self.check_stage(stage)
        if stage.needs_teacher and teacher is None:
            raise ValueError(
                f"teacher must be given, as the stage that starts at step {stage.start} predicts its latents"
            )
        num_tokens = math.prod(self.encoder.grid_size(video))
        return Targets({"encoder": self.encoder, "teacher": teacher}, video, num_tokens)

    def _blocks(self, video: torch.Tensor, masks: list[tuple], stage: Stage) -> Iterator[Block]:
        """Run the encoder from one depth that is read to the next, for each type of mask, yielding each block once it
        has run."""
        grid_size = self.encoder.grid_size(video)
        for mask_type, (context_ids, target_ids) in enumerate(masks):
            hidden_states, rotation = self.encoder.embed(video, context_ids)
            passed = 0
            for read_at in stage.read_depths:
                decoder = self.decoders[str(read_at)]
                end = decoder.context_depth
                # From the cut on the next block reads, too
                cut = max(passed, end - stage.overlap) if stage.local else end
                hidden_states = self.encoder.run_layers(hidden_states, rotation, passed, cut)
                context = self.encoder.run_layers(hidden_states, rotation, cut, end)
                modules = [decoder, *self.encoder.layers[passed:end]]
                modules += [self.encoder.embeddings] if read_at == stage.read_depths[0] else []
                modules += [self.encoder.norm] if end == len(self.encoder.layers) else []
                decode = partial(decoder, self.encoder, context, context_ids, grid_size=grid_size, mask_type=mask_type)
                objectives = [objective for objective in stage.objectives if objective.read_at == read_at]
                yield Block(objectives, target_ids, modules, decoder.heads, decode)
                hidden_states, passed = hidden_states.detach() if stage.local else hidden_states, cut

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
                        f"{name} must be between 0 and {math.prod(own) - 1}, the tokens of a grid of {own}, got "
                        f"{low if low < 0 else high}: draw the masks for the grid_size of the clips"
                    )

    def check_stage(self, stage: Stage):
        """Raise a `ValueError` if this model cannot do what the stage asks."""
        num_layers = self.config.num_hidden_layers
        if stage.num_frozen > num_layers:
            raise ValueError(
                f"num_frozen must be at most {num_layers}, the number of layers of the ViT, got {stage.num_frozen} "
                f"in the stage that starts at step {stage.start}"
            )
        if stage.local and self.config.decoder == "trunk":
            raise ValueError(
                "decoder must be 'predictor' for local stages: the trunk decodes with the layers of the last block"
            )
        for objective in stage.objectives:
            if str(objective.read_at) not in self.decoders:
                raise ValueError(
                    f"read_at must be {' or '.join(self.decoders)}, the depths that the {self.config.decoder} "
                    f"decoder reads, got {objective.read_at}"
                )
            if objective.target.head not in self.decoders[str(objective.read_at)].heads:
                raise ValueError(f"there is no head {objective.target.head}: set latent_head_depths")

    def freeze_for(self, stage: Stage):
        """Let exactly the parameters that learn in this stage require gradients. Idempotent, both ways."""
        self.check_stage(stage)
        self.encoder.freeze(stage.num_frozen)
        self.encoder.freeze_beyond(stage.read_depths[-1])
        for read_at, decoder in self.decoders.items():
            used = {objective.target.head for objective in stage.objectives if str(objective.read_at) == read_at}
            decoder.requires_grad_(bool(used))
            for name, head in decoder.heads.items():
                head.requires_grad_(name in used)
            if used:
                decoder.freeze_behind(stage.num_frozen)

    @torch.no_grad()
    def reset_head(self, read_at: int, name: str, generator: torch.Generator) -> nn.Module:
        """Start a head afresh, in place, for a new target ("a new patch-wise linear decoder", LayerLock, sec. 3.3)."""
        head = self.decoders[str(read_at)].heads[name]
        weight = torch.empty(head.weight.shape).normal_(std=Head.INIT_STD, generator=generator)
        copy_whole(head.weight, weight)
        head.bias.zero_()
        return head

    @torch.no_grad()
    def set_head_bias(self, read_at: int, name: str, bias: torch.Tensor):
        """Let a head predict `bias` (D or P,), as far as its weights are small."""
        copy_whole(self.decoders[str(read_at)].heads[name].bias, bias)

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
        raise ValueError(f"target_ids must hold {len(context_ids)} tensors, one per type of mask, as context_ids does")
    return list(zip(context_ids, target_ids, strict=True))
