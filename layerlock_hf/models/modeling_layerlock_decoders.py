"""Decoders: what turns context tokens into predictions at target positions, and the linear heads.

B batch, K context tokens, M target tokens, D width of the encoder, W width of the predictor, P pixel values per token.
"""

from typing import ClassVar

import torch
from torch import nn

from .configuration_layerlock import LayerLockViTConfig
from .modeling_layerlock import LayerLockViTLayer, LayerLockViTModel, rotation_for
from .positions_layerlock import ADDED_POSITIONS, grid_ids, rotary_embedding, rotate, take_tokens


class Head(nn.Linear):
    """The last linear layer of a decoder. It starts small: what it reads may not be normalised, and first losses shall
    be near the variance of the target."""

    INIT_STD: ClassVar[float] = 0.02


class Heads(nn.ModuleDict):
    """One linear head per kind of target, all from the start: the latent head is reset at each switch, so that the
    structure that DDP, FSDP and checkpoints see never changes."""

    def __init__(self, config: LayerLockViTConfig, width: int):
        super().__init__({name: Head(width, head_width) for name, head_width in config.head_widths.items()})


class TrunkDecoder(nn.Module):
    """The last layers of the ViT itself, run on a decoding token per position and the context (LayerLock, Alg. 1).

    Attributes:
        context_depth: layers that see the context tokens alone; the remaining ones decode.
        depth: where the predictions are read.
    """

    def __init__(self, config: LayerLockViTConfig, depth: int):
        super().__init__()
        self.config = config
        self.depth = depth
        self.context_depth = depth - config.num_decoder_layers
        if config.decoding_tokens == "learned":
            self.tokens = nn.Parameter(torch.empty(1, config.num_tokens, config.hidden_size))
        self.heads = Heads(config, config.hidden_size)

    def forward(
        self,
        encoder: LayerLockViTModel,
        context: torch.Tensor,
        context_ids: torch.Tensor,
        target_ids: torch.Tensor | None,
        grid_size: tuple[int, int, int],
        mask_type: int = 0,
    ) -> torch.Tensor:
        """(B, K, D), (B, K), (B, M) or None for every position -> (B, M, D)"""
        ids = grid_ids(grid_size, context.device) if target_ids is None else target_ids
        tokens = self.embed_positions(ids, grid_size).to(context.dtype)
        rotation = encoder.rotation(torch.cat([ids.expand(context.shape[0], -1), context_ids], dim=1), grid_size)
        # Decoding every position, the tokens are the same for every clip
        is_shared = target_ids is None and context.shape[0] > 1
        shared, own = (tokens, context) if is_shared else (None, torch.cat([tokens, context], dim=1))
        return encoder.run_layers(
            own, rotation, self.context_depth, self.depth, shared=shared, num_outputs=ids.shape[1]
        )

    def embed_positions(self, ids: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
        """The decoding tokens, which know nothing but their position: (B, M) -> (B, M, D)."""
        config = self.config
        if config.decoding_tokens == "learned":
            if grid_size != config.grid_size:
                raise ValueError(
                    f"grid_size must be {config.grid_size}, for which there are learned decoding tokens, got "
                    f"{grid_size}"
                )
            return take_tokens(self.tokens, ids)
        # "rope(tokens.shape)" of Algorithm 1, read as the rotation of a vector of ones
        ones = torch.ones(1, 1, config.hidden_size, device=ids.device).expand(*ids.shape, -1)
        rotation = rotary_embedding(ids, grid_size, config.hidden_size, config.rope_theta, config.rope_axis_fractions)
        return rotate(ones, rotation)

    def freeze_behind(self, num_frozen: int):
        """The decoding tokens enter with the first decoding layer and are frozen with it: below a frozen layer a
        trainable parameter would make autograd keep the activations of the whole prefix."""
        if self.config.decoding_tokens == "learned":
            self.tokens.requires_grad_(num_frozen <= self.context_depth)


class Predictor(nn.Module):
    """A narrow transformer on the projected context and a mask token per target position (V-JEPA).

    Attributes:
        context_depth: layers of the encoder that are read.
    """

    def __init__(self, config: LayerLockViTConfig, depth: int):
        super().__init__()
        sizes = config.for_predictor()
        self.sizes = sizes
        self.context_depth = self.depth = depth
        self.projection = nn.Linear(config.hidden_size, sizes.hidden_size)
        self.positions = ADDED_POSITIONS[config.position_embedding](config.grid_size, sizes.hidden_size)
        self.mask_tokens = nn.Parameter(torch.empty(config.num_mask_tokens, 1, sizes.hidden_size))
        self.layers = nn.ModuleList(LayerLockViTLayer(sizes) for _ in range(config.num_decoder_layers))
        for layer in self.layers:
            layer.attention.config = config  # the model's own, whose `set_attn_implementation` they follow
        self.norm = nn.LayerNorm(sizes.hidden_size, eps=config.layer_norm_eps)
        self.heads = Heads(config, sizes.hidden_size)

    def forward(
        self,
        encoder: LayerLockViTModel,
        context: torch.Tensor,
        context_ids: torch.Tensor,
        target_ids: torch.Tensor | None,
        grid_size: tuple[int, int, int],
        mask_type: int = 0,
    ) -> torch.Tensor:
        """(B, K, D), (B, K), (B, M) or None for every position -> (B, M, W)"""
        if not mask_type < len(self.mask_tokens):
            raise ValueError(
                f"mask type {mask_type} has no mask token, as num_mask_tokens={len(self.mask_tokens)}: raise it in "
                "the configuration"
            )
        ids = grid_ids(grid_size, context.device) if target_ids is None else target_ids
        ids = ids.expand(context.shape[0], -1)
        context = self.positions(self.projection(context), context_ids, grid_size)
        targets = self.mask_tokens[mask_type].to(context.dtype).expand(*ids.shape, -1)
        hidden_states = torch.cat([self.positions(targets, ids, grid_size), context], dim=1)
        rotation = rotation_for(self.sizes, torch.cat([ids, context_ids], dim=1), grid_size)
        for depth, layer in enumerate(self.layers, start=1):
            num_outputs = targets.shape[1] if depth == len(self.layers) else None
            hidden_states = layer(hidden_states, rotation, num_outputs=num_outputs)
        return self.norm(hidden_states)

    def freeze_behind(self, num_frozen: int):
        """It reads the encoder and learns however much of it is frozen."""


DECODERS = {"trunk": TrunkDecoder, "predictor": Predictor}
