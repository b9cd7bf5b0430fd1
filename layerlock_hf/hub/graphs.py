"""Models as graphs, which other programs run without this package: traced for clips of one size in batches of any
number, and compared with the model.

B batch, T frames, C channels, H and W pixels.
"""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.packages import importing


INPUT = "pixel_values_videos"
TOLERANCE = 1e-4
TRACED_BATCH = 2  # one clip would be taken for a constant
CHECKED_BATCHES = (1, 3, 4)
NUM_CLIPS = sum(CHECKED_BATCHES)

Run = Callable[[torch.Tensor], torch.Tensor]  # clips (B, T, C, H, W) to outputs


@dataclass(frozen=True)
class Output:
    """What a graph gives.

    Args:
        name: in the outputs of the model, and in the graph.
        meaning: what it is, with its shape.
        are_classes: whether the largest value names the class.
    """

    name: str
    meaning: str
    are_classes: bool = False


# Of each kind of model
OUTPUTS = {
    "encoder": Output("last_hidden_state", "features (B, tokens, width), ordered by time, height and width"),
    "classification": Output("logits", "one value per class, (B, classes)", are_classes=True),
    "depth": Output("predicted_depth", "metres, (B, T, H, W)"),
}


class OneOutput(nn.Module):
    """A model in eval mode and float32, as a function from clips to one of its outputs."""

    def __init__(self, model: nn.Module, output: Output):
        super().__init__()
        self.model, self.output = model, output
        self.float().eval()

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(pixel_values_videos), self.output.name)


@dataclass(frozen=True)
class Difference:
    """Between outputs for the same clips.

    Attributes:
        largest: absolute difference.
        scale: largest absolute value of the outputs that were expected.
        relative: norm of the difference over that of the outputs.
        same_class: share of the clips whose largest output is the same one; None for outputs that are no classes.
    """

    largest: float
    scale: float
    relative: float
    same_class: float | None = None

    @property
    def is_tolerable(self) -> bool:
        """Whether it is what another order of operations in float32 explains. False for NaN."""
        return self.largest <= TOLERANCE * max(1, self.scale)


@dataclass(frozen=True)
class Form:
    """A format of graphs.

    Args:
        title: what it is called.
        file: name of the file.
        write: puts a traced model into a file, given the name of its output.
        load: what runs such a file.
        snippet: code that runs it, in the folder of the file, given the shape (T, C, H, W) of clips and the name of
            the output.
        packages: that it needs besides PyTorch.
        extra: of this package, which installs them.
        variants: smaller forms of a file, each written by a function of the file and of its own path.
        details: more that whoever runs it may have to know.
    """

    title: str
    file: str
    write: Callable[[torch.export.ExportedProgram, str, Path], None]
    load: Callable[[Path], Run]
    snippet: Callable[[tuple[int, ...], str], str]
    packages: tuple[str, ...] = ()
    extra: str = ""
    variants: Mapping[str, Callable[[Path, Path], None]] = field(default_factory=dict)
    details: Mapping[str, int] = field(default_factory=dict)

    def check_packages(self):
        """Raise `PackageUnusable` where a package cannot be imported."""
        for name in self.packages:
            with importing(name, f"an export to {self.title}", self.extra):
                importlib.import_module(name)

    def file_of(self, variant: str) -> str:
        """Name of the file of a variant."""
        stem, ending = self.file.split(".")
        return f"{stem}_{variant}.{ending}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries say of themselves: that torchvision is missing, that a function of theirs is deprecated,
    or that a graph could be prepared first."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def random_clips(shape: tuple[int, ...]) -> torch.Tensor:
    """Clips of smooth random colours in [0, 1], which differ more than noise does: (T, C, H, W) ->
    (NUM_CLIPS, T, C, H, W)."""
    num_frames, num_channels, height, width = shape
    coarse = torch.rand(NUM_CLIPS, num_channels, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(num_frames, height, width), mode="trilinear").transpose(1, 2).contiguous()


@torch.no_grad()
def run_in_batches(run: Run, clips: torch.Tensor) -> torch.Tensor:
    """The outputs for all clips, in batches of several sizes, none of them the traced one."""
    return torch.cat([run(batch) for batch in clips.split(CHECKED_BATCHES)])


@torch.no_grad()
def trace(model: OneOutput, clips: torch.Tensor) -> torch.export.ExportedProgram:
    """The graph of a model, for batches of any size of clips like these."""
    # Once as it is: errors that are for people are raised here, and other people's encoders measure their tokens
    model(clips[:TRACED_BATCH])
    batch = torch.export.Dim("batch", min=1)
    with quiet():
        program = torch.export.export(model, (clips[:TRACED_BATCH],), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # files of this machine
    return program


def compare(found: torch.Tensor, expected: torch.Tensor, are_classes: bool) -> Difference:
    """How far outputs are from those that were expected, in the same order."""
    difference = found.double() - expected.double()
    same = (found.argmax(-1) == expected.argmax(-1)).double().mean().item() if are_classes else None
    return Difference(
        largest=difference.abs().max().item(),
        scale=expected.abs().max().item(),
        relative=(difference.norm() / expected.double().norm()).item(),
        same_class=same,
    )


def _save(program: torch.export.ExportedProgram, output: str, path: Path):
    program.example_inputs = None  # clips, which would be half of the file
    torch.export.save(program, path)


def _load(path: Path) -> Run:
    return torch.export.load(path).module()


def _snippet(shape: tuple[int, ...], output: str) -> str:
    return f"""import torch

model = torch.export.load("{TORCH.file}").module()
frames = torch.randint(0, 256, {(2, *shape)}, dtype=torch.uint8)  # yours: clips of RGB frames
clips = frames / 255
with torch.no_grad():
    {output} = model(clips)
print(tuple({output}.shape))
"""


TORCH = Form("torch.export", "model.pt2", _save, _load, _snippet)
