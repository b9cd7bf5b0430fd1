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
from .file_modes import follow_umask_in
from .positions_layerlock import ADDED_POSITIONS, grid_ids, grid_positions, rotary_embedding, rotate


SHARD_SIZE = "5GB"


def patchify(video: torch.Tensor, tubelet_size: int, patch_size: int, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Cut a clip into its tokens' boxes of pixels, each ordered frame, row, column, C: (B, T, C, H, W) -> (B, N, P).

    With ids (B, K), only these boxes are cut: (B, K, P). Copying a whole clip took longer than a layer on 5% of it.

    Raises:
        ValueError: if the clip is not a float clip that the boxes tile.
    """
    if video.ndim != 5 or not video.is_floating_point():
        raise ValueError(
            f"pixel_values_videos must be a float clip (B, T, C, H, W), got {video.dtype} of shape "
            f"{tuple(video.shape)}"
        )
    batch_size, num_frames, num_channels, height, width = video.shape
    if num_frames % tubelet_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"a clip of {num_frames} frames of {height}x{width} pixels cannot be cut into boxes of "
            f"tubelet_size={tubelet_size} frames and patch_size={patch_size} pixels: use multiples of these"
        )
    t, h, w = num_frames // tubelet_size, height // patch_size, width // patch_size
    boxes = video.reshape(batch_size, t, tubelet_size, num_channels, h, patch_size, w, patch_size)
    boxes = boxes.permute(0, 1, 4, 6, 2, 5, 7, 3)
    if ids is None:
        return boxes.reshape(batch_size, t * h * w, tubelet_size * patch_size**2 * num_channels)
    clips = torch.arange(batch_size, device=ids.device).unsqueeze(1)
    time, row, column = grid_positions(ids, (t, h, w))
    return boxes[clips, time, row, column].flatten(2)


def unpatchify(
    patches: torch.Tensor, grid_size: tuple[int, int, int], tubelet_size: int, patch_size: int
) -> torch.Tensor:
    """Put a clip together again: (B, N, P) -> (B, T, C, H, W), the inverse of `patchify`."""
    t, h, w = grid_size
    boxes = patches.reshape(patches.shape[0], t, h, w, tubelet_size, patch_size, patch_size, -1)
    return boxes.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(
        patches.shape[0], t * tubelet_size, -1, h * patch_size, w * patch_size
    )


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain operations, softmax in fp32; the signature is that of Transformers' attention interface."""
    weights = F.softmax(query @ key.transpose(-1, -2) * scaling, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def rotation_for(config: LayerLockViTConfig, ids: torch.Tensor, grid_size: tuple[int, int, int]) -> tuple | None:
    """What layers of this configuration need to know of the positions `ids` (B, K); None unless they are rotary."""
    if config.rotary_width == 0:
        return None
    return rotary_embedding(ids, grid_size, config.rotary_width, config.rope_theta, config.rope_axis_fractions)


class LayerLockViTEmbeddings(nn.Module):
    """Normalises and embeds boxes of pixels; adds positions where the config asks for it."""

    def __init__(self, config: LayerLockViTConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.values_per_token, config.hidden_size)
        self.positions = ADDED_POSITIONS[config.position_embedding](config.grid_size, config.hidden_size)

    def forward(
        self, patches: torch.Tensor, ids: torch.Tensor | None, grid_size: tuple, dtype: torch.dtype
    ) -> torch.Tensor:
        """(B, K, P), (B, K) -> (B, K, D), computed in the dtype of the weights."""
        return self.positions(self.projection(self.normalize(patches).to(dtype)), ids, grid_size)

    def normalize(self, patches: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] to what the projection sees: (B, K, P) -> (B, K, P).

        In the input and not folded into the projection: raw pixels are mostly their mean, which drowns the content.
        """
        if not self.config.normalizes_pixels:
            return patches
        # The channel comes last in a box. Not buffers, which loading on the meta device would leave without values
        mean, std = (patches.new_tensor(values) for values in (self.config.pixel_mean, self.config.pixel_std))
        return ((patches.unflatten(-1, (-1, len(mean))) - mean) / std).flatten(-2)


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
        rotation: tuple | None = None,
        shared: torch.Tensor | None = None,
        num_outputs: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, K, D) -> (B, K, D), and the weights (B, heads, K, K) where the attention function gives them.

        rotation, of queries and keys, is None unless the positions are `"rope_attention"`; shared and num_outputs are
        those of `LayerLockViTLayer`.
        """
        batch_size = hidden_states.shape[0]

        def project(linear, states):
            projected = linear(states)
            if shared is not None:
                projected = torch.cat([linear(shared).expand(batch_size, -1, -1), projected], dim=1)
            return projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        num_own_outputs = num_outputs if shared is None or num_outputs is None else num_outputs - shared.shape[1]
        query = project(self.query, hidden_states[:, :num_own_outputs])
        key, value = project(self.key, hidden_states), project(self.value, hidden_states)
        if rotation is not None:
            rotation = tuple(table.unsqueeze(1) for table in rotation)
            key = rotate(key, rotation)
            query = rotate(query, tuple(table[:, :, : query.shape[2]] for table in rotation))
        if batch_size == 0:  # which Transformers' attention cannot reshape
            return self.out(query.transpose(1, 2).flatten(2)), None
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attention(
            self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=self.is_causal, **kwargs
        )
        return self.out(context.flatten(2)), weights


class LayerLockViTMLP(nn.Module):
    def __init__(self, config: LayerLockViTConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        # For `start_weights`, which Transformers does not call for modules without parameters of their own
        self.up.is_of_mlp = self.down.is_of_mlp = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(hidden_states)))


class LayerLockViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer; rotary positions enter after the first norm, so that they reach q, k and v
    (LayerLock, sec. 3.1), or only q and k with `"rope_attention"`."""

    def __init__(self, config: LayerLockViTConfig):
        super().__init__()
        self.rotates_in_attention = config.position_embedding == "rope_attention"
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
        if rotation is not None and not self.rotates_in_attention:
            num_shared = 0 if shared is None else shared.shape[1]
            if shared is not None:
                normed_shared = rotate(normed_shared, tuple(table[:1, :num_shared] for table in rotation))
            normed = rotate(normed, tuple(table[:, num_shared:] for table in rotation))
            rotation = None
        attended = self.attention(normed, rotation, normed_shared, num_outputs, **kwargs)[0]
        if shared is not None:
            hidden_states = torch.cat([shared.expand(hidden_states.shape[0], -1, -1), hidden_states], dim=1)
        hidden_states = hidden_states[:, :num_outputs] + attended
        return hidden_states + self.mlp(self.norm2(hidden_states))


@torch.no_grad()
def start_weights(module: nn.Module, initializer_range: float | None):
    """The weights that a module itself, not what it consists of, starts from.

    Linear layers: a truncated normal of the given deviation (V-JEPA), or as in the 4DS code, Xavier uniform in MLPs of
    the ViT and LeCun normal elsewhere. Norms: identity. Tables: truncated normal of deviation 0.02. Biases: 0.
    """
    if isinstance(module, nn.Linear):
        if initializer_range is not None:
            init.trunc_normal_(module.weight, std=initializer_range)
        elif getattr(module, "is_of_mlp", False):
            init.xavier_uniform_(module.weight)
        else:
            # Truncated at two deviations, after which the deviation is that of LeCun. `lecun_normal_` of Transformers
            # truncates elsewhere and starts 14% too wide
            std = module.in_features**-0.5 / 0.87962566
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    for table in module.parameters(recurse=False):
        if table.ndim == 3:
            init.trunc_normal_(table, std=0.02)


class LayerLockViTPreTrainedModel(PreTrainedModel):
    config: LayerLockViTConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["LayerLockViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": LayerLockViTLayer, "attentions": LayerLockViTAttention}
    model_tags = ["layerlock", "video"]
    # Forward takes no `num_items_in_batch`: the Trainer divides by the accumulation steps itself.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        start_weights(module, self.config.initializer_range)

    def save_pretrained(self, save_directory, *args, max_shard_size: int | str = SHARD_SIZE, **kwargs):
        """As in Transformers, but in files that downloads can resume, and whom the umask lets read the files can read
        the weights, too."""
        super().save_pretrained(save_directory, *args, max_shard_size=max_shard_size, **kwargs)
        follow_umask_in(save_directory)


class LayerLockViTModel(LayerLockViTPreTrainedModel):
    """The video encoder.

    >>> model = LayerLockViTModel(LayerLockViTConfig.from_preset("tiny"))
    >>> list(model(torch.rand(1, 16, 3, 64, 64)).last_hidden_state.shape)
    [1, 512, 128]
    """

    # What a checkpoint with decoders or a readout holds besides the encoder.
    _keys_to_ignore_on_load_unexpected = [r"^decoders\.", r"^(classification|depth)_readout\."]

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
        """The tokens at several depths, computed in one pass that runs no layer beyond the deepest; timm calls it
        `forward_intermediates`.

        video (B, T, C, H, W), ids (B, K): the tokens to encode, all of them if None -> one (B, K, D) per depth.

        Raises:
            ValueError: if a depth is not between 0 and the number of layers.
        """
        if not all(0 <= depth <= len(self.layers) for depth in depths):
            raise ValueError(
                f"depths must be between 0 and the {len(self.layers)} layers of the ViT, got {list(depths)}"
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
            raise ValueError(
                f"num_layers to freeze must be between 0 and the {len(self.layers)} layers of the ViT, got "
                f"{num_layers}"
            )
        self.embeddings.requires_grad_(num_layers == 0)
        for depth, layer in enumerate(self.layers, start=1):
            layer.requires_grad_(depth > num_layers)
        self.norm.requires_grad_(num_layers < len(self.layers))
        self.config.num_frozen_layers = num_layers

    def freeze_beyond(self, depth: int):
        """Freeze the layers beyond `depth`, for uses that do not run them; what is trainable before it stays so."""
        for layer in self.layers[depth:]:
            layer.requires_grad_(False)
        if depth < len(self.layers):
            self.norm.requires_grad_(False)

    # The pieces that `forward` and `tap` are made of, for decoders that reuse the layers.

    def grid_size(self, video: torch.Tensor) -> tuple[int, int, int]:
        """Tokens along time, height and width of this clip, which need not have the configured size."""
        _, num_frames, _, height, width = video.shape
        size = self.config.patch_size
        return num_frames // self.config.tubelet_size, height // size, width // size

    def patchify(self, video: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, C, H, W), (B, K) or None for every token -> (B, K, P)"""
        return patchify(video, self.config.tubelet_size, self.config.patch_size, ids)

    def rotation(self, ids: torch.Tensor, grid_size: tuple[int, int, int]) -> tuple | None:
        """What `run_layers` needs to know of the positions `ids` (B, K); None unless they are rotary."""
        return rotation_for(self.config, ids, grid_size)

    def embed(self, video: torch.Tensor, ids: torch.Tensor | None = None) -> tuple[torch.Tensor, tuple | None]:
        """(B, T, C, H, W) -> tokens (B, K, D) and their rotation."""
        grid_size = self.grid_size(video)
        patches = self.patchify(video, ids)
        if patches.shape[-1] != self.config.values_per_token:
            raise ValueError(
                f"pixel_values_videos must have {self.config.num_channels} channels, got a clip of shape "
                f"{tuple(video.shape)}"
            )
        tokens = self.embeddings(patches, ids, grid_size, self.dtype)
        if ids is None:
            ids = grid_ids(grid_size, video.device)
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
