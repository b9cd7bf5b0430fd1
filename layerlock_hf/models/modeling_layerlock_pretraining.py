"""Masked pretraining of the LayerLock video ViT: the trunk decoder of 4DS and one head per kind of target.

B batch, T frames, N tokens of the grid, K context tokens, M target tokens, D width, P pixel values per token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_layerlock import LayerLockViTConfig
from .modeling_layerlock import LayerLockViTModel, LayerLockViTPreTrainedModel, rotary_embedding, rotate, take_tokens
from .objectives import Objective, Pixels, Stage


HEAD_INIT_STD = 0.02


@dataclass
class LayerLockViTForPretrainingOutput(ModelOutput):
    """Loss of a stage.

    Args:
        loss: weighted sum of the losses, ().
        losses: one () per objective, unweighted.
        target_variances: one () per objective: variance of the target about the mean of each of its channels in this
            batch. A constant prediction scores 1 - loss / variance = 0 at best; a variance that falls means collapse.
        predictions: one (B, M, D or P) per objective.
    """

    loss: torch.FloatTensor | None = None
    losses: tuple[torch.FloatTensor, ...] | None = None
    target_variances: tuple[torch.FloatTensor, ...] | None = None
    predictions: tuple[torch.FloatTensor, ...] | None = None


class LayerLockViTForPretraining(LayerLockViTPreTrainedModel):
    """The encoder, whose last layers decode, and the linear heads. It is *told* the stage and keeps none.

    >>> model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("tiny"))
    >>> context_ids = torch.rand(1, 512).argsort(dim=1)[:, :26]
    >>> model(torch.rand(1, 16, 3, 64, 64), context_ids).loss.shape
    torch.Size([])
    """

    def __init__(self, config: LayerLockViTConfig):
        super().__init__(config)
        self.encoder = LayerLockViTModel(config)
        if config.decoding_tokens == "learned":
            self.decoding_tokens = nn.Parameter(torch.empty(1, config.num_tokens, config.hidden_size))
        # One head per kind of target, all from the start: the latent head is reset at each switch, so that the
        # structure that DDP, FSDP and checkpoints see never changes.
        self.heads = nn.ModuleDict(
            {
                "pixels": nn.Linear(config.hidden_size, config.values_per_token),
                "latents": nn.Linear(config.hidden_size, config.hidden_size),
            }
        )
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        # The tokens that the heads read are not normalised: a small start keeps the first losses near the variance
        # of the target.
        if any(module is head for head in self.heads.values()):
            init.normal_(module.weight, std=HEAD_INIT_STD)

    @property
    def context_depth(self) -> int:
        """Layers that see the context tokens alone; the remaining ones decode."""
        return self.config.num_hidden_layers - self.config.num_decoder_layers

    @property
    def pixel_stage(self) -> Stage:
        """Plain 4DS-MAE, what `forward` does unless it is told another stage."""
        return Stage(0, 0, (Objective(self.config.num_hidden_layers, Pixels()),))

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_ids: torch.Tensor,
        target_ids: torch.Tensor | None = None,
        stage: Stage | None = None,
    ) -> LayerLockViTForPretrainingOutput:
        """Predict the stage's targets from the context tokens.

        Args:
            pixel_values_videos: clips in [0, 1], (B, T, C, H, W).
            context_ids: the tokens that the encoder sees, (B, K).
            target_ids: a random order of the grid, (B, N), of which objectives with a `patch_fraction` below 1 predict
                the beginning. Not needed by the others: they predict every token, seen ones too.
            stage: what to predict; pixels if None.
        """
        stage = stage or self.pixel_stage
        self.check_stage(stage)
        (context,) = self.encoder.tap(pixel_values_videos, [self.context_depth], context_ids)
        grid_size = self.encoder.grid_size(pixel_values_videos)
        decoded = {}  # by fraction: objectives that predict the same tokens share the decoder's pass
        losses, variances, predictions = [], [], []
        for objective in stage.objectives:
            ids = objective.select(target_ids)
            if objective.patch_fraction not in decoded:
                decoded[objective.patch_fraction] = self.decode(context, context_ids, ids, grid_size)
            prediction = self.heads[objective.target.head](decoded[objective.patch_fraction])
            with torch.no_grad():
                target = objective.target.compute(self.encoder, pixel_values_videos, ids)
                variances.append(F.mse_loss(target, target.mean(dim=(0, 1)).expand_as(target)))
            # Squared error over all predicted tokens, in fp32 also under autocast (LayerLock, sec. 3.4)
            losses.append(F.mse_loss(prediction.float(), target))
            predictions.append(prediction)
        return LayerLockViTForPretrainingOutput(
            loss=sum(objective.weight * loss for objective, loss in zip(stage.objectives, losses, strict=True)),
            losses=tuple(losses),
            target_variances=tuple(variances),
            predictions=tuple(predictions),
        )

    def decode(
        self,
        context: torch.Tensor,
        context_ids: torch.Tensor,
        target_ids: torch.Tensor | None,
        grid_size: tuple[int, int, int],
    ) -> torch.Tensor:
        """Put a decoding token per position before the context and run the last layers on both.

        (B, K, D), (B, K), (B, M) or None for every position -> (B, M, D)
        """
        t, h, w = grid_size
        if target_ids is None:
            ids = torch.arange(t * h * w, device=context.device).unsqueeze(0)
        else:
            ids = target_ids
        tokens = self.embed_positions(ids, grid_size).to(context.dtype)
        rotation = self.encoder.rotation(torch.cat([ids.expand(context.shape[0], -1), context_ids], dim=1), grid_size)
        # Decoding every position, the tokens are the same for every clip
        shared, own = (tokens, context) if target_ids is None else (None, torch.cat([tokens, context], dim=1))
        return self.encoder.run_layers(
            own, rotation, self.context_depth, self.config.num_hidden_layers, shared=shared, num_outputs=ids.shape[1]
        )

    def embed_positions(self, ids: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
        """The decoding tokens, which know nothing but their position: (B, M) -> (B, M, D)."""
        if self.config.decoding_tokens == "learned":
            if grid_size != self.config.grid_size:
                raise ValueError(
                    f"learned decoding tokens exist for a grid of {self.config.grid_size}, not {grid_size}"
                )
            return take_tokens(self.decoding_tokens, ids)
        # "rope(tokens.shape)" of Algorithm 1, read as the rotation of a vector of ones
        ones = torch.ones(1, 1, self.config.hidden_size, device=ids.device).expand(*ids.shape, -1)
        return rotate(ones, rotary_embedding(ids, grid_size, self.config))

    def check_stage(self, stage: Stage):
        """Raise a `ValueError` if this model cannot do what the stage asks."""
        num_layers = self.config.num_hidden_layers
        if stage.num_frozen > num_layers:
            raise ValueError(
                f"the stage that starts at step {stage.start} freezes {stage.num_frozen} layers, but the ViT has "
                f"{num_layers}"
            )
        for objective in stage.objectives:
            if objective.source != num_layers:
                raise ValueError(
                    f"the trunk decoder is read after its last layer ({num_layers}), not at depth {objective.source}"
                )

    def freeze_for(self, stage: Stage):
        """Let exactly the parameters that learn in this stage require gradients. Idempotent, both ways."""
        self.check_stage(stage)
        self.encoder.freeze(stage.num_frozen)
        used = {objective.target.head for objective in stage.objectives}
        for name, head in self.heads.items():
            head.requires_grad_(name in used)
        if self.config.decoding_tokens == "learned":
            # They enter with the first decoding layer and are frozen with it: below a frozen layer a trainable
            # parameter would make autograd keep the activations of the whole prefix.
            self.decoding_tokens.requires_grad_(stage.num_frozen <= self.context_depth)

    @torch.no_grad()
    def reset_head(self, name: str, generator: torch.Generator):
        """Start a head afresh, in place, for a new target ("a new patch-wise linear decoder", LayerLock, sec. 3.3)."""
        head = self.heads[name]
        weight = torch.empty(head.weight.shape).normal_(std=HEAD_INIT_STD, generator=generator)
        head.weight.copy_(weight)
        head.bias.zero_()

    def parameter_breakdown(self) -> dict[str, int]:
        """Number of parameters of each part."""

        def count(*modules):
            return sum(parameter.numel() for module in modules for parameter in module.parameters())

        tokens = [self.decoding_tokens] if self.config.decoding_tokens == "learned" else []
        return {
            "embeddings": count(self.encoder.embeddings),
            "encoder layers": count(*self.encoder.layers[: self.context_depth]),
            "decoder layers": count(*self.encoder.layers[self.context_depth :], self.encoder.norm),
            "decoding tokens": sum(table.numel() for table in tokens),
            **{f"{name} head": count(head) for name, head in self.heads.items()},
        }
