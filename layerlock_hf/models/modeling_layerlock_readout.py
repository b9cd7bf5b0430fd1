"""Readouts of the LayerLock video ViT: clips to classes or to depth, by cross-attention from learned queries.

B batch, T frames, H and W pixels, t h w grid of tokens, S tokens of one step of time (h * w), D width of the encoder,
R steps of time in the readout, Q queries, O outputs of a query.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import DepthEstimatorOutput, ImageClassifierOutput
from transformers.utils.output_capturing import capture_outputs

from .configuration_layerlock import LayerLockViTConfig
from .modeling_layerlock import LayerLockViTAttention, LayerLockViTModel, LayerLockViTPreTrainedModel


# Labels outside this range, in metres, are holes of the sensor (LayerLock, sec. A.4.3)
MIN_DEPTH, MAX_DEPTH = 0.001, 10.0


def cubic_weights(from_size: int, to_size: int, device: torch.device | None = None) -> torch.Tensor:
    """Weights of cubic interpolation between two lengths, (to_size, from_size), as `jax.image.resize` has them.

    That is Keys' kernel with a = -0.5 (PyTorch's has -0.75), samples at the centres of equal cells, weights beyond an
    end dropped and the others scaled to sum to 1, and a wider kernel where it shortens.
    """
    scale = from_size / to_size
    centres = (torch.arange(to_size, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
    # sym_max, so that torch.export can leave the length open
    distances = (centres.unsqueeze(1) - torch.arange(from_size, device=device)).abs() / torch.sym_max(scale, 1.0)
    near = (1.5 * distances - 2.5) * distances**2 + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    weights = torch.where(distances < 1, near, torch.where(distances < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer or a norm is no more than its weights, which may then be used without calling it: nothing
    adapts (LoRA), quantizes, offloads or watches it."""
    return (
        type(layer) in (nn.Linear, nn.LayerNorm)
        and "forward" not in layer.__dict__  # of the instance, where accelerate's offloading puts its own
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not any(map(is_traceable_wrapper_subclass, layer.parameters()))  # such as quantized weights
    )


class AttentionReadout(nn.Module):
    """Learned queries attend to the features of a whole clip, as in the 4DS code: one query for a class, one per box
    of pixels for dense outputs.

    Args:
        config: sizes of the encoder and of the readout.
        num_queries: number of queries.
        num_outputs: values that each query predicts.
    """

    def __init__(self, config: LayerLockViTConfig, num_queries: int, num_outputs: int):
        super().__init__()
        self.num_frames = config.readout_num_frames or config.num_frames
        self.num_heads = config.readout_num_attention_heads
        size = config.readout_hidden_size
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_embeddings = nn.Parameter(0.02 * torch.randn(self.num_frames, 1, config.hidden_size))
        self.queries = nn.Parameter(0.02 * torch.randn(1, num_queries, size))
        self.key = nn.Linear(config.hidden_size, size)
        self.value = nn.Linear(config.hidden_size, size)
        self.out = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.up = nn.Linear(size, config.readout_intermediate_size or 4 * size)
        self.activation = ACT2FN[config.hidden_act]
        self.down = nn.Linear(config.readout_intermediate_size or 4 * size, size)
        self.head = nn.Linear(size, num_outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, t, S, D) -> (B, Q, O)"""
        if all(map(is_plain, (self.norm1, self.key, self.value))):
            return self.read(self.normalize(features))
        return self._answer(self._attend(self.norm1(self._resize(features))))

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Resized in time, each token of mean 0 and variance 1, (B, t, S, D) -> (B, R, S, D).

        Involves no parameter: readouts of one configuration share it.
        """
        return F.layer_norm(self._resize(features), self.norm1.normalized_shape, eps=self.norm1.eps)

    def read(self, normalized: torch.Tensor) -> torch.Tensor:
        """What follows `normalize`, of readouts whose layers are plain: (B, R, S, D) -> (B, Q, O)"""
        # The same attention in another order of products: what the keys and values of all tokens would cost, queries
        # cost that are as many as features
        if self.queries.shape[1] * self.num_heads < self.queries.shape[2]:
            return self._answer(self._attend_folded(normalized))
        return self._answer(self._attend(normalized * self.norm1.weight + self.norm1.bias))

    def _resize(self, features: torch.Tensor) -> torch.Tensor:
        """(B, t, S, D) -> (B, R, S, D)"""
        weights = cubic_weights(features.shape[1], self.num_frames, features.device).to(features.dtype)
        # An einsum gives the same values in an order of dimensions that the norm is slow on
        return torch.matmul(weights, features.flatten(2)).unflatten(2, features.shape[2:])

    def _answer(self, attended: torch.Tensor) -> torch.Tensor:
        """(B, Q, C) -> (B, Q, O)"""
        states = self.queries.to(attended.dtype) + self.out(attended)
        states = states + self.down(self.activation(self.up(self.norm2(states))))
        return self.head(states)

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keys and values of every token: (B, R, S, D) -> (B, Q, C)"""
        tokens = (tokens + self.temporal_embeddings).flatten(1, 2)

        def split(states):
            return states.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        key, value = split(self.key(tokens)), split(self.value(tokens))
        queries = split(self.queries.to(key.dtype).expand(key.shape[0], -1, -1))
        return F.scaled_dot_product_attention(queries, key, value).transpose(1, 2).flatten(2)

    def _attend_folded(self, normalized: torch.Tensor) -> torch.Tensor:
        """Tokens weighted first and projected then, without calling norm1, key and value: (B, R, S, D) -> (B, Q, C)

        A score is query . key(token) = (query key) . token + query . bias, and the sum of weighted values is the value
        of the weighted sum of tokens.
        """
        key, value = (layer.weight.unflatten(0, (self.num_heads, -1)) for layer in (self.key, self.value))
        queries = self.queries[0].unflatten(1, (self.num_heads, -1))
        offsets = self.norm1.bias + self.temporal_embeddings.squeeze(1)  # of the tokens of a step of time, (R, D)
        queries = queries / queries.shape[2] ** 0.5
        directions = torch.einsum("qhc,hcd->qhd", queries, key).flatten(0, 1)
        biases = torch.einsum("qhc,hc->qh", queries, self.key.bias.unflatten(0, (self.num_heads, -1))).flatten()
        scores = torch.einsum("brsd,pd->bprs", normalized, (directions * self.norm1.weight).to(normalized.dtype))
        scores = scores.float() + (directions @ offsets.T + biases.unsqueeze(1)).unsqueeze(-1)
        weights = scores.flatten(2).softmax(dim=-1).unflatten(2, scores.shape[2:])
        tokens = torch.einsum("bprs,brsd->bpd", weights.to(normalized.dtype), normalized) * self.norm1.weight
        tokens = (tokens + weights.sum(dim=3).to(tokens.dtype) @ offsets).unflatten(1, (-1, self.num_heads))
        return torch.einsum("bqhd,hcd->bqhc", tokens, value).flatten(2) + self.value.bias


class LayerLockViTForReadout(LayerLockViTPreTrainedModel):
    """What the tasks share: the encoder, frozen unless `config.train_encoder`, read after `config.readout_depth`
    layers. The layers beyond are kept, for `AutoModel` and other depths, but neither run nor trained.

    Attributes:
        encoder_class: makes an encoder of the configuration; its verbs are those of `LayerLockViTModel`.
    """

    encoder_class: type[PreTrainedModel] = LayerLockViTModel
    accepts_loss_kwargs = True
    _can_record_outputs = {"attentions": LayerLockViTAttention}
    # What pretraining, or the readout of another task, leaves in a checkpoint.
    _keys_to_ignore_on_load_unexpected = [r"^decoders\.", r"^(classification|depth)_readout\."]

    def __init__(self, config: LayerLockViTConfig):
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.freeze_encoder(not config.train_encoder)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        # Parameters that were loaded all require gradients
        model.freeze_encoder(not model.config.train_encoder)
        return loaded

    @property
    def readout_depth(self) -> int:
        """Layers that the readout sees the output of."""
        depth = self.config.readout_depth
        return self.config.num_hidden_layers if depth is None else depth

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def freeze_encoder(self, frozen: bool = True):
        """Freeze the encoder, or let it learn up to the readout's depth. Idempotent, both ways."""
        self.encoder.requires_grad_(not frozen)
        self.encoder.freeze_beyond(self.readout_depth)
        self.config.train_encoder = not frozen

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Features at the readout's depth, without autograd of a frozen encoder: (B, T, C, H, W) -> (B, t, S, D)"""
        return self._encode(video, False)[0]

    def _encode(self, video: torch.Tensor, output_hidden_states: bool | None) -> tuple[torch.Tensor, tuple | None]:
        """The features, and if they are asked for, by the call or the configuration, the tokens (B, N, D) at every
        depth up to the readout's."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        depths = range(self.readout_depth + 1) if output_hidden_states else [self.readout_depth]
        learns = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            taps = self.encoder.tap(video, list(depths))
        features = taps[-1].unflatten(1, (self.encoder.grid_size(video)[0], -1))
        return features, tuple(taps) if output_hidden_states else None


class LayerLockViTForVideoClassification(LayerLockViTForReadout):
    """The encoder and a readout with one query. Clips may have any length: their features are resized in time.

    Examples:
        >>> config = LayerLockViTConfig.from_preset("tiny", readout_depth=6)
        >>> config.num_labels = 8
        >>> model = LayerLockViTForVideoClassification(config)
        >>> list(model(torch.rand(1, 16, 3, 64, 64)).logits.shape)
        [1, 8]
    """

    def __init__(self, config: LayerLockViTConfig):
        super().__init__(config)
        self.classification_readout = AttentionReadout(config, 1, config.num_labels)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classify clips: `logits` (B, num_labels).

        Args:
            pixel_values_videos: clips in [0, 1], (B, T, C, H, W).
            labels: classes, (B,), -100 where there is none; or what else `config.problem_type` asks for.
            num_items_in_batch: labels in the whole batch that gradients are accumulated over, by which the sum of the
                losses is then divided, instead of by the labels of this call. The `Trainer` gives it.
            output_hidden_states: also give the tokens (B, N, D) at every depth up to the readout's.
            output_attentions: also give the encoder's attention, which `attn_implementation="eager"` computes.
        """
        features, hidden_states = self._encode(pixel_values_videos, output_hidden_states)
        logits = self.classification_readout(features).squeeze(1)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits.float(), self.config, num_items_in_batch=num_items_in_batch)
            if num_items_in_batch is not None and self.config.problem_type != "single_label_classification":
                # The other losses of Transformers are means of this call's labels, whatever they are told
                loss = loss * labels.numel() / num_items_in_batch
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)


class LayerLockViTForDepthEstimation(LayerLockViTForReadout):
    """The encoder and a readout with one query per box of `config.decoding_patch_size` pixels.

    Examples:
        >>> model = LayerLockViTForDepthEstimation(LayerLockViTConfig.from_preset("tiny", readout_depth=6))
        >>> list(model(torch.rand(1, 16, 3, 64, 64)).predicted_depth.shape)
        [1, 16, 64, 64]
    """

    def __init__(self, config: LayerLockViTConfig):
        super().__init__(config)
        t, h, w = config.decoding_grid_size
        frames, rows, columns = config.decoding_patch_size
        self.depth_readout = AttentionReadout(config, t * h * w, frames * rows * columns)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> DepthEstimatorOutput:
        """Estimate the depth of every pixel: `predicted_depth` (B, T, H, W), in metres.

        Args:
            pixel_values_videos: clips of the configured size in [0, 1], (B, T, C, H, W).
            labels: depth in metres, (B, T, H, W). Values outside 0.001 to 10 m, and NaN, do not count.
            num_items_in_batch: labels in the whole batch that gradients are accumulated over, by which the sum of the
                squared errors is then divided, instead of by the valid labels of this call. The `Trainer` gives it. It
                counts every label but -100: mark invalid depth by -100 to have the mean over the valid labels.
            output_hidden_states: also give the tokens (B, N, D) at every depth up to the readout's.
            output_attentions: also give the encoder's attention, which `attn_implementation="eager"` computes.

        Raises:
            ValueError: if the clips have another size than the configured one, or the labels than the clips.
        """
        self.check_clip(pixel_values_videos)
        features, hidden_states = self._encode(pixel_values_videos, output_hidden_states)
        predicted_depth = depth_of_boxes(self.depth_readout(features), self.config)
        loss = None
        if labels is not None:
            loss = depth_loss(predicted_depth, labels, num_items_in_batch)
        return DepthEstimatorOutput(loss=loss, predicted_depth=predicted_depth, hidden_states=hidden_states)

    def check_clip(self, video: torch.Tensor):
        """Raise a `ValueError` if the clip has not the size that the queries were made for."""
        size = self.config.image_size
        if video.ndim != 5 or (video.shape[1], *video.shape[3:]) != (self.config.num_frames, size, size):
            raise ValueError(
                f"the clip (B, T, C, H, W) must have {self.config.num_frames} frames of {size}x{size} pixels, for "
                f"which the depth readout has queries, got the shape {tuple(video.shape)}: crop and resize it, and "
                "resize the depth back with post_process_depth_estimation"
            )


def depth_of_boxes(boxes: torch.Tensor, config: LayerLockViTConfig) -> torch.Tensor:
    """Put the boxes of a depth readout, each ordered frame, row, column, together: (B, Q, O) -> (B, T, H, W)"""
    boxes = boxes.unflatten(2, config.decoding_patch_size).unflatten(1, config.decoding_grid_size)
    return boxes.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def is_known_depth(metres: torch.Tensor) -> torch.Tensor:
    """Where labels count: a mask of the same shape."""
    return (metres >= MIN_DEPTH) & (metres <= MAX_DEPTH)


def depth_loss(
    predicted_depth: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Squared error over the valid labels, (B, T, H, W) twice -> (); 0 where no label is valid.

    It is their mean, or their sum over `num_items_in_batch`.
    """
    if labels.shape != predicted_depth.shape:
        raise ValueError(
            f"labels must be depth maps (B, T, H, W) of shape {tuple(predicted_depth.shape)}, got "
            f"{tuple(labels.shape)}"
        )
    predicted_depth, labels = predicted_depth.float(), labels.to(predicted_depth.device, torch.float32)
    valid = is_known_depth(labels)
    # Replaced before the loss and not after: 0 * NaN is NaN, in the gradient too
    labels = torch.where(valid, labels, predicted_depth.detach())
    loss = F.mse_loss(predicted_depth, labels, reduction="sum")
    return loss / (valid.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def post_process_depth_estimation(
    outputs: DepthEstimatorOutput, target_sizes: torch.Tensor | list[tuple[int, int]] | None = None
) -> list[dict[str, torch.Tensor]]:
    """The depth of each clip, `{"predicted_depth": (T, H, W)}`, resized if `target_sizes` are given.

    Args:
        outputs: of `LayerLockViTForDepthEstimation`.
        target_sizes: height and width for each clip, (B, 2).

    Raises:
        ValueError: if there is not one size per clip.
    """
    depths = outputs.predicted_depth
    if target_sizes is None:
        return [{"predicted_depth": depth} for depth in depths]
    if len(target_sizes) != len(depths):
        raise ValueError(
            f"target_sizes must be one (height, width) per clip, got {len(target_sizes)} for {len(depths)} clips"
        )
    sizes = [tuple(int(side) for side in size) for size in target_sizes]
    return [
        {"predicted_depth": F.interpolate(depth.unsqueeze(1), size=size, mode="bicubic").squeeze(1)}
        for depth, size in zip(depths, sizes, strict=True)
    ]
