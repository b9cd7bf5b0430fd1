"""A folder with a model as a graph: files that were compared with the model, and how to run them."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import VIDEO_PROCESSOR_NAME

from ..models import LayerLockVideoProcessor
from ..utils.files import write_folder_aside
from ..utils.records import json_text
from ..utils.version import VERSION
from .graphs import (
    CHECKED_BATCHES,
    INPUT,
    NUM_CLIPS,
    OUTPUTS,
    TOLERANCE,
    TORCH,
    Difference,
    OneOutput,
    compare,
    random_clips,
    run_in_batches,
    trace,
)
from .kinds import KINDS
from .onnx_graphs import ONNX
from .rendering import render
from .words import listed


FORMS = {"onnx": ONNX, "torch": TORCH}
ABOUT = "graph.json"
README = "README.md"
TEMPLATE = Path(__file__).with_name("graph_template.md")


def write_graph(
    model: PreTrainedModel,
    kind: str,
    processor: LayerLockVideoProcessor,
    folder: Path,
    form: str,
    variants: Sequence[str] = (),
) -> dict[str, Difference]:
    """Make a folder with a model as a graph, for batches of any size of clips as the processor makes them.

    The folder is there with all of its files, or not at all.

    Args:
        model: which is put in eval mode and float32.
        kind: a key of `OUTPUTS`.
        folder: that is empty, or does not exist.
        form: a key of `FORMS`.
        variants: smaller forms to write as well, of those that the form has.

    Returns:
        How far each file is from the model, by its name.

    Raises:
        ValueError: if the model cannot run on such clips, or if the graph does not give what the model gives.
    """
    chosen, output = FORMS[form], OUTPUTS[kind]
    shape = (processor.num_frames, 3, processor.crop_size["height"], processor.crop_size["width"])
    function, clips = OneOutput(model, output), random_clips(shape)
    program = trace(function, clips)
    expected = run_in_batches(function, clips)

    def difference_of(path: Path) -> Difference:
        return compare(run_in_batches(chosen.load(path), clips), expected, output.are_classes)

    with write_folder_aside(folder) as aside:
        path = aside / chosen.file
        chosen.write(program, output.name, path)
        differences = {path.name: difference_of(path)}
        check(differences[path.name], chosen.title)
        for variant in variants:
            smaller = aside / chosen.file_of(variant)
            chosen.variants[variant](path, smaller)
            differences[smaller.name] = difference_of(smaller)
        processor.to_json_file(aside / VIDEO_PROCESSOR_NAME)
        describe(aside, model, kind, processor, shape, form, differences)
    return differences


def check(difference: Difference, title: str):
    """Raise a `ValueError` unless a graph gives what its model gives."""
    if not difference.is_tolerable:
        raise ValueError(
            f"the graph must give what the model gives, to {TOLERANCE:g}, got outputs up to {difference.scale:.3g} "
            f"that differ by {difference.largest:.3g} in {title}: nothing was written, take another form or another "
            "version of PyTorch"
        )


def size_of(path: Path) -> int:
    """Bytes of a file, and of its weights if they lie beside it."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))


def describe(
    folder: Path,
    model: PreTrainedModel,
    kind: str,
    processor: LayerLockVideoProcessor,
    shape: tuple[int, ...],
    form: str,
    differences: dict[str, Difference],
):
    """Add what whoever runs the files has to know, for programs and for people."""
    chosen, output = FORMS[form], OUTPUTS[kind]
    sizes = {name: size_of(folder / name) for name in differences}
    versions = {name: version(name) for name in ("torch", "transformers", *chosen.packages)}
    facts = {
        "form": form,
        "kind": kind,
        "input": {"name": INPUT, "layout": "B, T, C, H, W", "shape": ["batch", *shape], "dtype": "float32"},
        "input_range": [0, 1],
        "output": {"name": output.name, "dtype": "float32", "meaning": output.meaning},
        "classes": list(model.config.id2label.values()) if output.are_classes else [],
        **chosen.details,
        "versions": {"layerlock_hf": VERSION, **versions},
        "tolerance": TOLERANCE,
        "files": {name: {"bytes": sizes[name], **asdict(differences[name])} for name in differences},
    }
    text = render(
        TEMPLATE,
        facts=facts,
        kind=KINDS[type(model).__name__],
        form=chosen,
        output=output,
        shape=shape,
        processor=processor,
        processor_file=VIDEO_PROCESSOR_NAME,
        about=ABOUT,
        num_clips=NUM_CLIPS,
        batches=listed([str(number) for number in CHECKED_BATCHES]),
        files=[(name, sizes[name], differences[name]) for name in differences],
    )
    (folder / ABOUT).write_text(json_text(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / README).write_text(text, encoding="utf-8")
