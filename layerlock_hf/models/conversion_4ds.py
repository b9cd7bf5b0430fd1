"""The released 4DS weights ("Scaling 4D Representations"), arrays of the original JAX code, as our models.

Sizes and task are deduced from the names and shapes of the arrays.
"""

import math
import re
from collections import Counter

import torch

from .configuration_layerlock import LayerLockViTConfig
from .configuration_layerlock_readout import readout_depth_from_fraction
from .modeling_layerlock import LayerLockViTModel, LayerLockViTPreTrainedModel
from .modeling_layerlock_readout import LayerLockViTForDepthEstimation, LayerLockViTForVideoClassification


ENCODER_NAME = re.compile(r"(?P<prefix>(.*?/)?)(encoder/(patch_embedding|posenc)|processor/layers_(?P<layer>\d+))/")
ARRAYS_PER_LAYER = 16
MAX_NAMES = 20  # in an error message


def convert_4ds(
    arrays: dict[str, torch.Tensor],
    readout_depth_fraction: float = 0.95,
    decoding_patch_size: list[int] | None = None,
) -> LayerLockViTPreTrainedModel:
    """The model in a released checkpoint: an encoder, or an encoder with a readout for classes or for depth.

    Args:
        arrays: by their names in the checkpoint.
        readout_depth_fraction: the `readout_depth` of the original code, which checkpoints do not record.
        decoding_patch_size: frames, rows and columns of the box that a query of a depth readout predicts. If None, a
            square box with as many frames as the encoder's.

    Raises:
        ValueError: naming the arrays that are missing, surplus or of another shape than the others demand, or a
            `decoding_patch_size` that is given with a readout for classes.
    """
    encoder, num_layers = find_encoder(arrays)
    readout = find_readout(arrays)
    fields = encoder_fields(arrays, encoder, num_layers)
    fields["readout_depth"] = readout_depth_from_fraction(num_layers, readout_depth_fraction)
    if decoding_patch_size is not None:
        fields["decoding_patch_size"] = decoding_patch_size
    if readout is None:
        model_class, config = LayerLockViTModel, LayerLockViTConfig(**fields)
        entries = encoder_entries(config, encoder, "")
    else:
        fields |= readout_fields(arrays, readout)
        num_queries = shape_of(arrays, f"{readout}query", 3)[0]
        num_outputs = shape_of(arrays, f"{readout}Dense_1/kernel", 2)[1]
        if num_queries == 1:
            if decoding_patch_size is not None:
                raise ValueError(
                    f"decoding_patch_size must be left out, got {decoding_patch_size}: this is a readout for classes"
                )
            model_class, ours = LayerLockViTForVideoClassification, "classification_readout."
            fields["num_labels"] = num_outputs
        else:
            model_class, ours = LayerLockViTForDepthEstimation, "depth_readout."
            fields["decoding_patch_size"] = find_box(fields, num_queries, num_outputs, decoding_patch_size)
        config = LayerLockViTConfig(**fields)
        entries = encoder_entries(config, encoder, "encoder.")
        entries |= readout_entries(config, num_queries, num_outputs, readout, ours)
    check_arrays(arrays, {name: shape for name, (_, shape) in entries.items()})
    with torch.device("meta"):
        model = model_class(config)
    load_arrays(model, arrays, {name: ours for name, (ours, _) in entries.items()})
    return model.eval()


def load_arrays(model: LayerLockViTPreTrainedModel, arrays: dict[str, torch.Tensor], names: dict[str, str]):
    """Give a model on the meta device its parameters, in fp32. names: theirs -> ours, for every array."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state_dict = {}
    for theirs, ours in names.items():
        array = arrays[theirs]
        if theirs.endswith("/kernel"):
            # Inputs come first, and inputs or outputs may be split into heads or the axes of a box
            array = array.reshape(shapes[ours][::-1]).T
        state_dict[ours] = array.reshape(shapes[ours]).to(torch.float32).contiguous()
    model.load_state_dict(state_dict, assign=True)


# ---- what the arrays say


def find_encoder(arrays: dict[str, torch.Tensor]) -> tuple[str, int]:
    """What the encoder's names begin with, and its number of layers: the deepest with more than half of its arrays."""
    matches = [match for match in map(ENCODER_NAME.match, arrays) if match]
    if not matches:
        raise ValueError(
            "no array of a 4DS encoder was found, such as params/layers_0/processor/layers_0/mlp/dense_in/kernel"
        )
    prefix = Counter(match["prefix"] for match in matches).most_common(1)[0][0]
    counts = Counter(int(match["layer"]) for match in matches if match["prefix"] == prefix and match["layer"])
    return prefix, 1 + max((layer for layer, count in counts.items() if 2 * count > ARRAYS_PER_LAYER), default=0)


def find_readout(arrays: dict[str, torch.Tensor]) -> str | None:
    """What the readout's names begin with; None where there are less than half of its arrays."""
    # MLP_0/Dense_0 before Dense_0, which it ends with
    endings = sorted(readout_entries(LayerLockViTConfig(), 1, 1, "", ""), key=len, reverse=True)
    prefixes = Counter()
    for name in arrays:
        if not ENCODER_NAME.match(name):
            found = next((ending for ending in endings if f"/{name}".endswith(f"/{ending}")), None)
            prefixes.update([name.removesuffix(found)] if found else [])
    prefix, count = (prefixes.most_common(1) or [(None, 0)])[0]
    return prefix if 2 * count > len(endings) else None


def encoder_fields(arrays: dict[str, torch.Tensor], prefix: str, num_layers: int) -> dict:
    """Fields of the configuration that the encoder decides."""
    tubelet_size, rows, columns, num_channels, hidden_size = shape_of(
        arrays, f"{prefix}encoder/patch_embedding/Conv_0/kernel", 5
    )
    t, h, w, _ = shape_of(arrays, f"{prefix}encoder/posenc/embeddings", 4)
    if rows != columns or h != w:
        raise ValueError(
            f"patches and clips must be square, got patches of {rows}x{columns} pixels in "
            f"{prefix}encoder/patch_embedding/Conv_0/kernel and {h}x{w} tokens in {prefix}encoder/posenc/embeddings"
        )
    # Half a patch, as in the released depth models; it tiles every clip that patches tile
    half = rows // math.gcd(rows, 2)
    return {
        "image_size": h * rows,
        "num_frames": t * tubelet_size,
        "num_channels": num_channels,
        "patch_size": rows,
        "tubelet_size": tubelet_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": shape_of(arrays, f"{prefix}processor/layers_0/attention/query/kernel", 3)[1],
        "intermediate_size": shape_of(arrays, f"{prefix}processor/layers_0/mlp/dense_in/kernel", 2)[1],
        "position_embedding": "learned",
        # The decoder of pretraining is not among the released arrays. This kind asks nothing of the number of layers
        "decoder": "predictor",
        "decoding_patch_size": [tubelet_size, half, half],
    }


def readout_fields(arrays: dict[str, torch.Tensor], prefix: str) -> dict:
    """Fields of the configuration that the readout decides, whatever its task."""
    _, num_heads, head_size = shape_of(arrays, f"{prefix}query", 3)
    return {
        "readout_hidden_size": num_heads * head_size,
        "readout_num_attention_heads": num_heads,
        "readout_intermediate_size": shape_of(arrays, f"{prefix}MLP_0/Dense_0/kernel", 2)[1],
        "readout_num_frames": shape_of(arrays, f"{prefix}temporal_posenc/embeddings", 3)[0],
    }


def find_box(fields: dict, num_queries: int, num_outputs: int, given: list[int] | None) -> list[int]:
    """The box of pixels that a query of a depth readout predicts."""
    clip_frames, side = fields["num_frames"], fields["image_size"]

    def fits(box):
        tiles = not (clip_frames % box[0] or side % box[1] or side % box[2])
        return tiles and math.prod(box) == num_outputs and clip_frames * side**2 == num_queries * num_outputs

    squares = [[frames, *[math.isqrt(num_outputs // frames)] * 2] for frames in range(1, num_outputs + 1)]
    squares = [box for box in squares if fits(box)]
    boxes = [box for box in squares if box[0] == fields["tubelet_size"]] or squares
    if given is not None:
        boxes = [given] if fits(given) else []
    if len(boxes) != 1:
        raise ValueError(
            f"decoding_patch_size must be a box of {num_outputs} pixels, {num_queries} of which tile a clip of "
            f"{clip_frames} frames of {side}x{side} pixels, got {given}: square boxes that fit are {squares}"
        )
    return boxes[0]


def shape_of(arrays: dict[str, torch.Tensor], name: str, num_axes: int) -> tuple[int, ...]:
    """The shape of an array that sizes are read from."""
    if name not in arrays:
        raise ValueError(f"the checkpoint has no array {name}")
    if arrays[name].ndim != num_axes:
        raise ValueError(f"{name} must have {num_axes} axes, got the shape {tuple(arrays[name].shape)}")
    return tuple(arrays[name].shape)


def check_arrays(arrays: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]):
    """Raise a `ValueError` unless exactly the arrays of these shapes are there."""
    faults = {
        "missing": [name for name in shapes if name not in arrays],
        "surplus": [name for name in arrays if name not in shapes],
        "of another shape than the others demand": [
            f"{name} {tuple(arrays[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in arrays and tuple(arrays[name].shape) != shape
        ],
        "not of floats": [name for name, array in arrays.items() if not array.is_floating_point()],
    }
    if any(faults.values()):
        found = [
            f"{len(names)} {fault}: {', '.join(names[:MAX_NAMES])}{', ...' if len(names) > MAX_NAMES else ''}"
            for fault, names in faults.items()
            if names
        ]
        raise ValueError(f"not the arrays of a 4DS model: {'; '.join(found)}")


# ---- their names and shapes, and our names


def linear(theirs: str, ours: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> dict:
    return {f"{theirs}/kernel": (f"{ours}.weight", (*inputs, *outputs)), f"{theirs}/bias": (f"{ours}.bias", outputs)}


def norm(theirs: str, ours: str, size: int) -> dict:
    return {f"{theirs}/scale": (f"{ours}.weight", (size,)), f"{theirs}/bias": (f"{ours}.bias", (size,))}


def encoder_entries(config: LayerLockViTConfig, theirs: str, ours: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Their name -> our name and their shape, both names with a prefix."""
    width, hidden = (config.hidden_size,), (config.intermediate_size,)
    heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    box = (config.tubelet_size, config.patch_size, config.patch_size, config.num_channels)
    entries = linear(f"{theirs}encoder/patch_embedding/Conv_0", f"{ours}embeddings.projection", box, width)
    entries[f"{theirs}encoder/posenc/embeddings"] = (
        f"{ours}embeddings.positions.table",
        (*config.grid_size, *width),
    )
    for layer in range(config.num_hidden_layers):
        a, b = f"{theirs}processor/layers_{layer}/", f"{ours}layers.{layer}."
        for name in ("query", "key", "value"):
            entries |= linear(f"{a}attention/{name}", f"{b}attention.{name}", width, heads)
        entries |= linear(f"{a}attention/out", f"{b}attention.out", heads, width)
        entries |= linear(f"{a}mlp/dense_in", f"{b}mlp.up", width, hidden)
        entries |= linear(f"{a}mlp/dense_out", f"{b}mlp.down", hidden, width)
        entries |= norm(f"{a}attention_norm", f"{b}norm1", *width) | norm(f"{a}mlp_norm", f"{b}norm2", *width)
    return entries


def readout_entries(
    config: LayerLockViTConfig, num_queries: int, num_outputs: int, theirs: str, ours: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Their name -> our name and their shape, both names with a prefix."""
    features, width = (config.hidden_size,), (config.readout_hidden_size,)
    hidden = (config.readout_intermediate_size,)
    heads = (config.readout_num_attention_heads, config.readout_hidden_size // config.readout_num_attention_heads)
    return {
        f"{theirs}temporal_posenc/embeddings": (
            f"{ours}temporal_embeddings",
            (config.readout_num_frames, 1, *features),
        ),
        f"{theirs}query": (f"{ours}queries", (num_queries, *heads)),
        **norm(f"{theirs}LayerNorm_0", f"{ours}norm1", *features),
        **linear(f"{theirs}key_embedding", f"{ours}key", features, heads),
        **linear(f"{theirs}value_embedding", f"{ours}value", features, heads),
        **linear(f"{theirs}Dense_0", f"{ours}out", width, width),
        **norm(f"{theirs}LayerNorm_1", f"{ours}norm2", *width),
        **linear(f"{theirs}MLP_0/Dense_0", f"{ours}up", width, hidden),
        **linear(f"{theirs}MLP_0/Dense_1", f"{ours}down", hidden, width),
        **linear(f"{theirs}Dense_1", f"{ours}head", width, (num_outputs,)),
    }
