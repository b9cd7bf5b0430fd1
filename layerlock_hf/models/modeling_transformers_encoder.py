"""Any video or image ViT of Transformers as an encoder with the verbs of `LayerLockViTModel`, and readouts of it.

No model is known by name. Layers are found in the module tree and read by hooks; which token sees which pixels is
measured. B batch, T frames, C channels, H and W pixels, t h w grid of tokens, N tokens of the grid, M tokens of a clip
with class and register tokens, D width. A depth is a number of layers passed: depth 0 is the input of the first layer,
depth k the output of the k-th, before any norm that follows the layers; after that norm at the last depth, if the
configuration has `use_final_norm`.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple, logging

from .configuration_transformers_encoder import TransformersEncoderConfig
from .file_modes import follow_umask_in
from .modeling_layerlock import SHARD_SIZE
from .modeling_layerlock_readout import LayerLockViTForDepthEstimation, LayerLockViTForVideoClassification
from .positions_layerlock import take_tokens


logger = logging.get_logger(__name__)

# What models are told where they know of it, in Transformers' words: to take images of other sizes than the configured
# one, and not to predict what is masked (V-JEPA 2)
SETTINGS = ("interpolate_pos_encoding", "skip_predictor")


class DeepestLayerPassed(Exception):
    """Ends a forward pass once all depths that were asked for are read."""


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of a clip come from.

    Attributes:
        takes_frames: whether the model is given frames (B * T, C, H, W) rather than clips.
        grid_size: tokens along time, height and width.
        ids: of the M tokens those of the grid, ordered t, h, w: (N,).
        num_tokens: M.
    """

    takes_frames: bool
    grid_size: tuple[int, int, int]
    ids: torch.Tensor
    num_tokens: int


def grid_of(seen_by: torch.Tensor) -> tuple[tuple[int, int, int], torch.Tensor]:
    """The grid (t, h, w) of a map that tells which token sees each pixel, and its tokens in this order, (N,).

    seen_by (T, H, W) holds -1 where no token does, which is allowed at the ends: patches need not fill the clip.

    Raises:
        ValueError: if the tokens are no grid of equal boxes.
    """
    is_seen = seen_by >= 0
    sizes = [int(is_seen.any(dim=others).sum()) for others in ((1, 2), (0, 2), (0, 1))]
    seen_by = seen_by[: sizes[0], : sizes[1], : sizes[2]]
    if 0 in sizes or (seen_by < 0).any():
        raise ValueError("some pixels within the clip are not seen by any token")
    lines = (seen_by[:, 0, 0], seen_by[0, :, 0], seen_by[0, 0, :])
    counts = tuple(1 + int((line.diff() != 0).sum()) for line in lines)
    if any(size % count for size, count in zip(sizes, counts, strict=True)):
        raise ValueError(f"{counts} tokens (t, h, w) cannot have equal boxes of {tuple(sizes)} frames, rows, columns")
    steps = [size // count for size, count in zip(sizes, counts, strict=True)]
    grid = boxes = seen_by[:: steps[0], :: steps[1], :: steps[2]]
    for axis, step in enumerate(steps):
        boxes = boxes.repeat_interleave(step, dim=axis)
    if not torch.equal(boxes, seen_by) or grid.unique().numel() != grid.numel():
        raise ValueError("the pixels that a token sees are not one box of a grid")
    return counts, grid.flatten()


class TransformersEncoder(PreTrainedModel):
    """A model of Transformers that reads clips, frozen or not.

    It takes clips (B, T, C, H, W) in [0, 1], as `LayerLockViTModel` does, and normalises the pixels itself. A model of
    images is given the frames one by one. While all its parameters are frozen it stays in eval mode.

    Args:
        config: of the model and of the clips it takes.
        model: the model itself, if it is there already; by default one with random weights.

    Raises:
        ValueError: if the model has no list of layers.
    """

    config: TransformersEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # What a readout leaves in a checkpoint
    _keys_to_ignore_on_load_unexpected = [r"^(classification|depth)_readout\."]

    def __init__(self, config: TransformersEncoderConfig, model: PreTrainedModel | None = None):
        super().__init__(config)
        self.model = AutoModel.from_config(config.encoder_config) if model is None else model
        lists = [name for name, module in self.model.named_modules() if isinstance(module, nn.ModuleList)]
        lists = [name for name in lists if len(self.model.get_submodule(name)) == config.num_hidden_layers]
        if not lists:
            raise ValueError(
                f"a {config.encoder_config.model_type} model cannot be read: it has no list of "
                f"{config.num_hidden_layers} layers, the number in its configuration"
            )
        self._layers_name = lists[0]
        self._layouts: dict[tuple[int, ...], TokenLayout] = {}
        accepted = inspect.signature(self.model.forward).parameters
        self._settings = {name: True for name in SETTINGS if name in accepted}
        self.post_init()

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, which the model owns."""
        return self.model.get_submodule(self._layers_name)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def _init_weights(self, module):
        """Nothing: all parameters are the model's, which has initialised them."""

    def save_pretrained(self, save_directory, *args, max_shard_size: int | str = SHARD_SIZE, **kwargs):
        """As that of `LayerLockViTModel`."""
        super().save_pretrained(save_directory, *args, max_shard_size=max_shard_size, **kwargs)
        follow_umask_in(save_directory)

    def train(self, mode: bool = True):
        """As for every module, but frozen it stays in eval mode: its dropout would disturb what is read."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    @can_return_tuple
    def forward(self, pixel_values_videos: torch.Tensor) -> BaseModelOutput:
        """Encode clips: (B, T, C, H, W) in [0, 1] -> `last_hidden_state` (B, N, D), without the final norm unless the
        configuration has `use_final_norm`."""
        (tokens,) = self.tap(pixel_values_videos, [self.config.num_hidden_layers])
        return BaseModelOutput(last_hidden_state=tokens)

    def tap(self, video: torch.Tensor, depths: list[int], ids: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The tokens at several depths, computed in one pass that runs no layer beyond the deepest; timm calls it
        `forward_intermediates`.

        video (B, T, C, H, W) in [0, 1] -> one (B, N, D) per depth, ordered t, h, w, without class and register tokens.
        With ids (B, K) these of them, (B, K, D) per depth; the pass itself always runs on the whole clip.

        Raises:
            ValueError: if a depth is not between 0 and the number of layers, or if the model cannot be read.
        """
        if not depths or not all(0 <= depth <= self.config.num_hidden_layers for depth in depths):
            raise ValueError(
                f"depths must be between 0 and the {self.config.num_hidden_layers} layers of the encoder, got "
                f"{list(depths)}"
            )
        layout = self.layout(video)
        shape = (video.shape[0], layout.num_tokens, self.config.hidden_size)

        # Copied at once: a layer may go on to work in place
        def select(depth: int, states: torch.Tensor) -> torch.Tensor:
            if states.shape[-1] != shape[2] or states.numel() != shape[0] * shape[1] * shape[2]:
                raise ValueError(
                    f"a {self.config.encoder_config.model_type} model cannot be read: after {depth} layers its states "
                    f"have the shape {tuple(states.shape)}, where depth 0 has {shape} (batch, tokens, width). "
                    "Hierarchical models, whose layers merge tokens, are not supported"
                )
            return states.reshape(shape).index_select(1, layout.ids.to(states.device))

        taps = self._read(self._inputs(video, layout.takes_frames), depths, select)
        return [take_tokens(taps[depth], ids) for depth in depths]

    def grid_size(self, video: torch.Tensor) -> tuple[int, int, int]:
        """Tokens along time, height and width of this clip."""
        return self.layout(video).grid_size

    def freeze_beyond(self, depth: int):
        """Freeze what comes after `depth` layers, which reading there does not run."""
        read = set(self.parameters_up_to(depth))
        for name, parameter in self.model.named_parameters():
            if name not in read:
                parameter.requires_grad_(False)

    def parameters_up_to(self, depth: int) -> list[str]:
        """Names in `model` of the parameters that the tokens at a depth can depend on: those that come, in the order
        of its modules, no later than the last of that layer; all of them, if the final norm is read."""
        names = [name for name, _ in self.model.named_parameters()]
        if self._is_after_norm(depth):
            return names
        layers = [f"{self._layers_name}.{index}." for index in range(self.config.num_hidden_layers)]
        if depth == 0:
            return names[: next(index for index, name in enumerate(names) if name.startswith(layers[0]))]
        return names[: 1 + max(index for index, name in enumerate(names) if name.startswith(layers[depth - 1]))]

    def _is_after_norm(self, depth: int) -> bool:
        return depth == self.config.num_hidden_layers and self.config.use_final_norm

    def _inputs(self, video: torch.Tensor, takes_frames: bool) -> dict:
        """What the model is called with, for a clip (B, T, C, H, W) in [0, 1]."""
        mean, std = (
            torch.tensor(values, dtype=video.dtype, device=video.device).view(-1, 1, 1)
            for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        pixels = ((video - mean) / std).to(self.model.dtype)
        return {self.model.main_input_name: pixels.flatten(0, 1) if takes_frames else pixels, **self._settings}

    def _read(self, inputs: dict, depths: list[int], select) -> dict[int, torch.Tensor]:
        """`select(depth, states)` of the states at the depths; nothing beyond the deepest is run."""
        taps, handles, deepest = {}, [], max(depths)

        def keep(depth, values):
            taps[depth] = select(depth, next(value for value in values if isinstance(value, torch.Tensor)))
            # torch.export keeps count of the modules that are entered and left, and drops what nobody reads
            if depth == deepest and not torch.compiler.is_exporting():
                raise DeepestLayerPassed

        def keep_input(_, args, kwargs):
            keep(0, [*args, *kwargs.values()])

        def keep_output(depth):
            return lambda _, args, output: keep(depth, [output] if isinstance(output, torch.Tensor) else output)

        def keep_normed(_, args, output):
            keep(deepest, [output.last_hidden_state])

        try:
            for depth in set(depths):
                if depth == 0:
                    handles.append(self.layers[0].register_forward_pre_hook(keep_input, with_kwargs=True))
                elif self._is_after_norm(depth):
                    handles.append(self.model.register_forward_hook(keep_normed))
                else:
                    handles.append(self.layers[depth - 1].register_forward_hook(keep_output(depth)))
            self.model(**inputs)
        except DeepestLayerPassed:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if deepest not in taps:
            raise ValueError(f"its forward pass did not run layer {max(deepest, 1)}")
        return taps

    # Which token sees which pixels

    def layout(self, video: torch.Tensor) -> TokenLayout:
        """The layout of the tokens of clips of this shape, measured the first time.

        Raises:
            ValueError: if the clip is not one, or if the model cannot be read.
        """
        if video.ndim != 5 or not video.is_floating_point() or video.shape[2] != len(self.config.pixel_mean):
            raise ValueError(
                f"pixel_values_videos must be a float clip (B, T, C, H, W) of {len(self.config.pixel_mean)} colours, "
                f"got {video.dtype} of shape {tuple(video.shape)}"
            )
        shape = tuple(video.shape[1:])
        if shape not in self._layouts:
            try:
                self._layouts[shape] = self._measure_layout(shape, video.device)
            except ValueError as error:
                raise ValueError(
                    f"a {self.config.encoder_config.model_type} model cannot be read, given a clip (T, C, H, W) of "
                    f"shape {shape}: {error}"
                ) from error
        return self._layouts[shape]

    def _measure_layout(self, shape: tuple[int, ...], device: torch.device) -> TokenLayout:
        """Ask the gradients at depth 0. Two clips tell how a batch is laid out."""
        generator = torch.Generator().manual_seed(0)  # nobody else's random numbers are drawn
        failures = []
        # Plain precision, and gradients, whatever the caller has asked for
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            clips = torch.rand(2, *shape, generator=generator).to(device).requires_grad_()
            for takes_frames in (False, True):
                try:
                    inputs = self._inputs(clips, takes_frames)
                    tokens = self._read(inputs, [0], lambda _, states: states)[0]
                    break
                except Exception as error:  # whatever a model says to the other kind of input: told below
                    failures.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
            else:
                raise ValueError(f"given as a clip: {failures[0]}; given as frames: {failures[1]}")
            if tokens.shape[-1] != self.config.hidden_size:
                raise ValueError(
                    f"its first layer has tokens of width {tokens.shape[-1]}, but its configuration says "
                    f"hidden_size={self.config.hidden_size}. Hierarchical models, whose layers merge tokens, are not "
                    "supported"
                )
            tokens = tokens.flatten(0, -2)
            scores = tokens.float() @ torch.randn(tokens.shape[1], generator=generator).to(device)
            seen_by = seeing_token(scores, clips)
        num_tokens = len(scores) // 2
        is_seen = seen_by[0] >= 0
        if not torch.equal(seen_by[1], torch.where(is_seen, seen_by[0] + num_tokens, -1)):
            raise ValueError("the tokens of a batch are not ordered clip by clip")
        grid_size, ids = grid_of(seen_by[0])
        if not is_seen.all():
            logger.warning(
                f"{self.config.encoder_config.model_type}: the {grid_size} tokens do not cover clips (T, C, H, W) of "
                f"shape {shape}: {1 - is_seen.double().mean():.1%} of their pixels, at the edges, are not seen"
            )
        return TokenLayout(takes_frames, grid_size, ids, num_tokens)


def seeing_token(scores: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Which of the scores (M,), one per token, depends on each pixel of (B, T, C, H, W): (B, T, H, W), -1 where none.

    Embeddings of patches are local, so that a pixel's gradient of the sum of some of the scores is that of the sum of
    all, or zero. Summing those whose index has a bit set tells this bit of the index. To weight the scores by their
    index would ask only once, but needs more digits than convolutions on GPUs (TF32) and bf16 have.

    Raises:
        ValueError: if a pixel is seen by several tokens.
    """

    def sensitivity(weights):
        if not scores.requires_grad:
            raise ValueError("its tokens do not depend on the pixels")
        (gradient,) = torch.autograd.grad((scores * weights).sum(), clips, retain_graph=True)
        return gradient.abs().sum(dim=2)

    indices = torch.arange(len(scores), device=scores.device)
    whole = sensitivity(torch.ones_like(scores))
    is_seen = whole > 0
    found = torch.zeros_like(whole, dtype=torch.long)
    for bit in range((len(scores) - 1).bit_length()):
        share = torch.where(is_seen, sensitivity(((indices >> bit) & 1).to(scores)) / whole, 0)
        if ((share > 0.01) & (share < 0.99) | (share > 1.01)).any():
            raise ValueError("some pixels are seen by several tokens, as if its patches overlapped")
        found += (share > 0.5).long() << bit
    return torch.where(is_seen, found, -1)


class TransformersEncoderForVideoClassification(LayerLockViTForVideoClassification):
    """`LayerLockViTForVideoClassification` of a `TransformersEncoder`."""

    config: TransformersEncoderConfig
    encoder_class = TransformersEncoder
    _no_split_modules = []


class TransformersEncoderForDepthEstimation(LayerLockViTForDepthEstimation):
    """`LayerLockViTForDepthEstimation` of a `TransformersEncoder`."""

    config: TransformersEncoderConfig
    encoder_class = TransformersEncoder
    _no_split_modules = []
