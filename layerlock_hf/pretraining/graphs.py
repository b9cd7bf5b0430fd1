"""From what a run left to a graph that runs without the package: `layerlock export --to onnx`."""

from collections.abc import Sequence
from pathlib import Path

from ..hub.graph_folder import FORMS, write_graph
from ..hub.graphs import OUTPUTS, Difference
from ..hub.repository import find_processor
from ..models import LayerLockVideoProcessor
from .exporting import check_choice, check_empty, find_source, load_part


def export_graph(
    run: str | Path,
    output_dir: str | Path,
    form: str = "onnx",
    what: str | None = None,
    checkpoint: int | str | None = None,
    variants: Sequence[str] = (),
    image_size: int | None = None,
    num_frames: int | None = None,
) -> dict[str, Difference]:
    """Make a folder with a model as a graph in float32, which runs without this package and Transformers.

    It takes clips of one size in batches of any number. What it gives was compared with what the model gives: a graph
    that differs by more than rounding is not kept.

    Examples:
        >>> export_graph("runs/mine/readout", "classifier-onnx", variants=["int8"])  # doctest: +SKIP

    Args:
        run, what, checkpoint: as of `export`, but by default the encoder of a run of pretraining, whose decoders are
            no graph.
        output_dir: the folder to make, which must be empty or not exist.
        form: "onnx", or "torch" for `torch.export`.
        variants: smaller forms to write as well, of ONNX "float16" and "int8". How far they are from the model is
            measured, and told.
        image_size: height and width of the clips, in pixels; by default those that the video processor makes.
        num_frames: frames per clip; likewise.

    Returns:
        How far each file is from the model, by its name.

    Raises:
        ValueError: naming the argument that is wrong, what the run lacks, or the package to install.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form}")
    known = FORMS[form].variants
    if unknown := [name for name in variants if name not in known]:
        allowed = f"among {', '.join(known)}" if known else "left out"
        raise ValueError(f"variants of {form} must be {allowed}, got {', '.join(unknown)}")
    FORMS[form].check_packages()
    source, output = find_source(Path(run), checkpoint), Path(output_dir)
    if what is None:
        what = source.kind if source.kind in OUTPUTS else "encoder"
    check_choice(source, what, None)
    if what not in OUTPUTS:
        raise ValueError(f"what must be one of {', '.join(OUTPUTS)} for a graph, got {what}: export the encoder")
    processor = resized(find_processor(source.folder), image_size, num_frames)
    check_empty(output, Path(run), source)
    return write_graph(load_part(source, what), what, processor, output, form, variants)


def resized(
    processor: LayerLockVideoProcessor, image_size: int | None, num_frames: int | None
) -> LayerLockVideoProcessor:
    """One for clips of another size, which show the same part of the frames, or of another length.

    Raises:
        ValueError: if it makes clips of other pixels than graphs take, or if there are no such clips.
    """
    if processor.do_normalize:
        raise ValueError(
            "do_normalize of the video processor must be False, got True: graphs take pixels in [0, 1]; give the "
            "statistics to the encoder instead (pixel_mean and pixel_std in config.json)"
        )
    settings = processor.to_dict()
    if image_size is not None:
        scale = image_size / processor.crop_size["height"]
        settings["size"] = {side: scale * pixels for side, pixels in processor.size.items()}
        settings["crop_size"] = image_size
    if num_frames is not None:
        settings["num_frames"] = num_frames
    return LayerLockVideoProcessor(**settings)
