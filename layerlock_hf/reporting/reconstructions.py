"""What the model of a run predicts in pixels, as long as it did."""

import torch

from ..data import MaskArguments
from ..models import Objective, Pixels
from ..pretraining.exporting import load
from ..pretraining.planning import settings_of
from ..pretraining.reconstruction import reconstruct
from .pictures import as_bytes, data_uri, enlarged, montage
from .spreading import spread


NUM_SHOWN, NUM_MOMENTS = 2, 4
TILE = 96  # pixels, about


def pixel_objective(stage) -> Objective | None:
    """The deepest of a `Stage` that predicts pixels."""
    found = [one for one in stage.objectives if isinstance(one.target, Pixels)]
    return max(found, key=lambda one: one.read_at, default=None)


def reconstruction_pictures(run) -> dict:
    """For the page: clips, what the encoder saw of them and what was predicted, by the last model that was kept of a
    stage that predicts pixels.

    Args:
        run: a `recorded.Run`.

    Raises:
        ValueError: if no stage predicts pixels, no such model was kept, or there are no videos.
    """
    stages = run.planned.stages
    if not any(map(pixel_objective, stages)):
        raise ValueError("no stage of this run predicts pixels: latents cannot be looked at")
    kept = [
        one
        for one in run.snapshots
        if one.source.kind == "pretraining" and one.trained_in is not None and pixel_objective(stages[one.trained_in])
    ]
    if not kept:
        left_out = f". Left out: {'; '.join(run.left_out)}" if run.left_out else ""
        raise ValueError(
            f"no model was kept of a stage that predicts pixels: keep them by --save_stages true{left_out}"
        )
    snapshot, clips = kept[-1], run.clips
    objective = pixel_objective(stages[snapshot.trained_in])
    model = load(snapshot.source).float().eval()
    frames = clips.frames[:NUM_SHOWN].float() / 255
    masks = settings_of(MaskArguments, run.record["settings"]).build()
    seen, completed = reconstruct(model, frames, masks, objective)
    size = model.config.tubelet_size
    times = spread(range(size - 1, model.config.num_frames, size), NUM_MOMENTS)
    factor = max(1, round(TILE / model.config.image_size))
    shown = (("what happens", frames), ("what the encoder sees", seen), ("what the model predicts", completed))
    return {
        "step": snapshot.step,
        "name": snapshot.name,
        "names": clips.names[: len(frames)],
        "sources": clips.sources,
        "is_normalized": objective.target.normalize,
        "mask": run.record["settings"].get("mask", MaskArguments().mask),
        "frames": [time + 1 for time in times],
        "rows": [(name, _strip(pixels[:, times], factor)) for name, pixels in shown],
    }


def _strip(pixels: torch.Tensor, factor: int) -> str:
    """One clip beside the other: (B, T, C, H, W) -> an address."""
    return data_uri(montage(enlarged(as_bytes(pixels.flatten(0, 1)), factor).unsqueeze(0)), is_photo=True)
