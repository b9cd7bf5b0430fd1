"""Video ViT of LayerLock and 4DS. Notable: tubelet tokens, 3D RoPE after the first norm, no class token.

B batch, T frames, C channels, H and W pixels, t h w grid of tokens, N tokens of the grid, K tokens of a subset,
D width, P pixel values per token. Tokens are ordered t, then h, then w. A depth is a number of layers passed:
depth 0 is the embedded tokens, depth k the output of the k-th layer.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_layerlock import LayerLockViTConfig


def take_tokens(tokens: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """Tokens at `ids`, or all of them: (B or 1, N, D), (B, K) -> (B, K, D)."""
    if ids is None:
        return tokens
    tokens = tokens.expand(ids.shape[0], -1, -1)
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def patchify(video: torch.Tensor, tubelet_size: int, patch_size: int) -> torch.Tensor:
    """Cut a clip into its tokens' boxes of pixels: (B, T, C, H, W) -> (B, N, P), a box ordered frame, row, column, C.

    Raises:
        ValueError: if the clip is not a float clip that the boxes tile.
    """
    if video.ndim != 5 or not video.is_floating_point():
        raise ValueError(f"expected a float clip (B, T, C, H, W), got {video.dtype} of shape {tuple(video.shape)}")
    batch_size, num_frames, num_channels, height, width = video.shape
    if num_frames % tubelet_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"a clip of {num_frames} frames of {height}x{width} pixels cannot be cut into boxes of "
            f"tubelet_size={tubelet_size} frames and patch_size={patch_size} pixels"
        )
    t, h, w = num_frames // tubelet_size, height // patch_size, width // patch_size
    boxes = video.reshape(batch_size, t, tubelet_size, num_channels, h, patch_size, w, patch_size)
    return boxes.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(batch_size, t * h * w, -1)


def unpatchify(
    patches: torch.Tensor, grid_size: tuple[int, int, int], tubelet_size: int, patch_size: int
) -> torch.Tensor:
    """Put a clip together again: (B, N, P) -> (B, T, C, H, W), the inverse of `patchify`."""
    t, h, w = grid_size
    boxes = patches.reshape(patches.shape[0], t, h, w, tubelet_size, patch_size, patch_size, -1)
    return boxes.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(
        patches.shape[0], t * tubelet_size, -1, h * patch_size, w * patch_size
    )


def rotary_embedding(
    ids: torch.Tensor, grid_size: tuple[int, int, int], config: LayerLockViTConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines that encode the positions `ids` in time, height and width: (B, K) -> 2 x (B, K, R / 2).

    R is the number of rotated channels: each axis gets its share of the D channels, rounded to an even count.
    """
    _, h, w = grid_size
    positions = (ids // (h * w), ids // w % h, ids % w)
    angles = []
    for position, fraction in zip(positions, config.rope_axis_fractions, strict=True):
        num_pairs = round(config.hidden_size * fraction / 2)
        exponents = torch.arange(num_pairs, device=ids.device, dtype=torch.float32) / max(num_pairs, 1)
        angles.append(position.unsqueeze(-1).float() * config.rope_theta**-exponents)
    angles = torch.cat(angles, dim=-1)
    return angles.cos(), angles.sin()


def rotate(hidden_states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate pairs of channels by their angles: (B, K, D) -> (B, K, D).

    The first R / 2 channels pair with the next R / 2; the remaining D - R channels carry no position.
    """
    cos, sin = rotation
    num_pairs = cos.shape[-1]
    first, second, rest = hidden_states.split([num_pairs, num_pairs, hidden_states.shape[-1] - 2 * num_pairs], dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return rotated.to(hidden_states.dtype)  # the tables are fp32, the model need not be


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain operations, softmax in fp32; the signature is that of Transformers' attention interface."""
    weights = F.softmax(query @ key.transpose(-1, -2) * scaling, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class LayerLockViTEmbeddings(nn.Module):
    """Embeds boxes of pixels; adds the learned positions where the config asks for them."""

    def __init__(self, config: LayerLockViTConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.values_per_token, config.hidden_size)
        if config.position_embedding == "learned":
            self.position_embeddings = nn.Parameter(torch.empty(1, config.num_tokens, config.hidden_size))

    def forward(self, patches: torch.Tensor, ids: torch.Tensor | None, grid_size: tuple) -> torch.Tensor:
        """(B, K, P), (B, K) -> (B, K, D)"""
        tokens = self.projection(patches)
        if self.config.position_embedding == "learned":
            positions = resample_positions(self.position_embeddings, self.config.grid_size, grid_size)
            tokens = tokens + take_tokens(positions, ids)
        return tokens


def resample_positions(table: torch.Tensor, from_grid: tuple, to_grid: tuple) -> torch.Tensor:
    """Resample a learned table to another grid, trilinearly: (1, N, D) -> (1, N', D)."""
    if from_grid == to_grid:
        return table
    volume = table.reshape(1, *from_grid, -1).permute(0, 4, 1, 2, 3)
    return F.interpolate(volume.float(), size=to_grid, mode="trilinear").flatten(2).transpose(1, 2).to(table.dtype)


class LayerLockViTAttention(nn.Module):
    def __init__(self, config: LayerLockViTConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False  # read by the attention functions of Transformers
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        shared: torch.Tensor | None = None,
        num_outputs: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, K, D) -> (B, K, D), and the weights (B, heads, K, K) where the attention function gives them.

        shared and num_outputs are those of `LayerLockViTLayer`.
        """
        batch_size = hidden_states.shape[0]

        def project(linear, states):
            projected = linear(states)
            if shared is not None:
                projected = torch.cat([linear(shared).expand(batch_size, -1, -1), projected], dim=1)
            return projected.view(batch_size, projected.shape[1], self.num_heads, -1).transpose(1, 2)

        num_own_outputs = num_outputs if shared is None or num_outputs is None else num_outputs - shared.shape[1]
        query = project(self.query, hidden_states[:, :num_own_outputs])
        key, value = project(self.key, hidden_states), project(self.value, hidden_states)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attention(
            self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=self.is_causal, **kwargs
        )
        return self.out(context.reshape(batch_size, query.shape[2], -1)), weights


class LayerLockViTMLP(nn.Module):
    def __init__(self, config: LayerLockViTConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(hidden_states)))


class LayerLockViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block; positions are rotated in after the first norm, so that they reach q, k and v
    (LayerLock, sec. 3.1)."""

    def __init__(self, config: LayerLockViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LayerLockViTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LayerLockViTMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotation: tuple | None = None,
        shared: torch.Tensor | None = None,
        num_outputs: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, K, D) -> (B, K, D)

        Args:
            rotation: of all the tokens, the shared ones first.
            shared: tokens that are the same for every clip and come before the others, (1, M, D): they are projected
                once for the whole batch. The result then holds M + K tokens.
            num_outputs: compute the first tokens only; the others are still attended to.
        """
        normed, normed_shared = self.norm1(hidden_states), None
        if shared is not None:
            normed_shared = self.norm1(shared)
            if rotation is not None:
                normed_shared = rotate(normed_shared, tuple(table[:1, : shared.shape[1]] for table in rotation))
                rotation = tuple(table[:, shared.shape[1] :] for table in rotation)
        if rotation is not None:
            normed = rotate(normed, rotation)
        attended = self.attention(normed, normed_shared, num_outputs, **kwargs)[0]
        if shared is not None:
            hidden_states = torch.cat([shared.expand(hidden_states.shape[0], -1, -1), hidden_states], dim=1)
        hidden_states = hidden_states[:, :num_outputs] + attended
        return hidden_states + self.mlp(self.norm2(hidden_states))


class LayerLockViTPreTrainedModel(PreTrainedModel):
    config: LayerLockViTConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["LayerLockViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_record_outputs = {"hidden_states": LayerLockViTLayer, "attentions": LayerLockViTAttention}
    model_tags = ["layerlock", "video"]
    # Forward takes no `num_items_in_batch`: the Trainer divides by the accumulation steps itself.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        # Linear: LeCun normal, as the 4DS code has it for attention; norms: identity; tables: truncated normal 0.02
        if isinstance(module, nn.Linear):
            init.lecun_normal_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        for table in module.parameters(recurse=False):
            if table.ndim == 3:
                init.trunc_normal_(table, std=0.02)


class LayerLockViTModel(LayerLockViTPreTrainedModel):
    """The video encoder.

    >>> model = LayerLockViTModel(LayerLockViTConfig.from_preset("tiny"))
    >>> list(model(torch.rand(1, 16, 3, 64, 64)).last_hidden_state.shape)
    [1, 512, 128]
    """

    # What a checkpoint with heads or a readout holds besides the encoder.
    _keys_to_ignore_on_load_unexpected = [r"^heads\.", r"^decoding_tokens$", r"^(classification|depth)_readout\."]

    def __init__(self, config: LayerLockViTConfig):
        super().__init__(config)
        config.check_sizes()
        self.embeddings = LayerLockViTEmbeddings(config)
        self.layers = nn.ModuleList(LayerLockViTLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_final_norm else nn.Identity()
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.projection

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, pixel_values_videos: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Encode every token of a clip: (B, T, C, H, W) in [0, 1] -> `last_hidden_state` (B, N, D).

        With `output_hidden_states=True`, `hidden_states` has one entry per depth, 0 to the number of layers.
        """
        hidden_states, rotation = self.embed(pixel_values_videos)
        hidden_states = self.run_layers(hidden_states, rotation, 0, len(self.layers), **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def tap(self, video: torch.Tensor, depths: list[int], ids: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The tokens at several depths, computed in one pass that runs no layer beyond the deepest.

        video (B, T, C, H, W), ids (B, K): the tokens to encode, all of them if None -> one (B, K, D) per depth.

        Raises:
            ValueError: if a depth is not between 0 and the number of layers.
        """
        if not all(0 <= depth <= len(self.layers) for depth in depths):
            raise ValueError(
                f"depths {list(depths)} are not all between 0 and the {len(self.layers)} layers of the ViT"
            )
        hidden_states, rotation = self.embed(video, ids)
        taps, passed = {}, 0
        for depth in sorted(set(depths)):
            hidden_states = self.run_layers(hidden_states, rotation, passed, depth)
            taps[depth], passed = hidden_states, depth
        return [taps[depth] for depth in depths]

    def freeze(self, num_layers: int):
        """Freeze the embeddings and the first `num_layers` layers, unfreeze the others; 0 unfreezes everything.

        Raises:
            ValueError: if the ViT has fewer layers.
        """
        if not 0 <= num_layers <= len(self.layers):
            raise ValueError(f"cannot freeze {num_layers} layers of a ViT that has {len(self.layers)}")
        self.embeddings.requires_grad_(num_layers == 0)
        for depth, layer in enumerate(self.layers, start=1):
            layer.requires_grad_(depth > num_layers)
        self.norm.requires_grad_(num_layers < len(self.layers))
        self.config.num_frozen_layers = num_layers

    # The pieces that `forward` and `tap` are made of, for decoders that reuse the layers.

    def grid_size(self, video: torch.Tensor) -> tuple[int, int, int]:
        """Tokens along time, height and width of this clip, which need not have the configured size."""
        _, num_frames, _, height, width = video.shape
        size = self.config.patch_size
        return num_frames // self.config.tubelet_size, height // size, width // size

    def patchify(self, video: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) -> (B, N, P)"""
        return patchify(video, self.config.tubelet_size, self.config.patch_size)

    def rotation(self, ids: torch.Tensor, grid_size: tuple[int, int, int]) -> tuple | None:
        """What `run_layers` needs to know of the positions `ids` (B, K); None unless the positions are rotary."""
        return rotary_embedding(ids, grid_size, self.config) if self.config.position_embedding == "rope" else None

    def embed(self, video: torch.Tensor, ids: torch.Tensor | None = None) -> tuple[torch.Tensor, tuple | None]:
        """(B, T, C, H, W) -> tokens (B, K, D) and their rotation."""
        grid_size = self.grid_size(video)
        patches = take_tokens(self.patchify(video), ids)
        if patches.shape[-1] != self.config.values_per_token:
            raise ValueError(f"expected {self.config.num_channels} channels, got a clip of shape {tuple(video.shape)}")
        tokens = self.embeddings(patches, ids, grid_size)
        if ids is None:
            ids = torch.arange(patches.shape[1], device=video.device).unsqueeze(0)
        return tokens, self.rotation(ids, grid_size)

    def run_layers(
        self,
        hidden_states: torch.Tensor,
        rotation: tuple | None,
        start: int,
        stop: int,
        shared: torch.Tensor | None = None,
        num_outputs: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Take tokens from depth `start` to depth `stop`: (B, K, D) -> (B, K, D). The final norm belongs to the last.

        shared (1, M, D) tokens enter before the first of these layers, and the last one computes `num_outputs` tokens
        only: see `LayerLockViTLayer`.
        """
        for depth in range(start, stop):
            hidden_states = self.layers[depth](
                hidden_states,
                rotation,
                shared=shared if depth == start else None,
                num_outputs=num_outputs if depth == stop - 1 else None,
                **kwargs,
            )
        return self.norm(hidden_states) if start < stop == len(self.layers) else hidden_states
