"""What a model makes of a clip, as pictures.

N tokens of the grid (t, h, w), D their width; clips are float32 (1, T, 3, S, S), pictures bytes (3, H, W).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from matplotlib import colormaps
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from ..evaluation.depth_videos import DepthVideo, scaled_box
from ..evaluation.predict import best_labels
from ..pretraining.reconstruction import masked, reconstruct
from ..reporting.features import colours, principal_scores, rotated_like
from .reading import Taken
from .sheets import Sheet
from .subject import READOUTS, Kept, Readout


COLOUR_MAP = "inferno"  # black is unlike, yellow is alike
OPACITY = 0.7  # of the colours over the frames
BORDER = 3  # pixels around the patch that was chosen


@torch.inference_mode()
def tap(encoder: PreTrainedModel, clip: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens after so many layers, and after the last one: float32 (N, D) each."""
    shallow, deep = encoder.tap(clip.to(encoder.device), [depth, encoder.config.num_hidden_layers])
    return shallow[0].float().cpu(), deep[0].float().cpu()


def feature_colours(tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The three directions in which tokens (N, D) differ most as red, green and blue in [0, 1], (N, 3), rotated to
    where they are most like those of the reference (N, D): the colours stay from depth to depth."""
    return colours(rotated_like(principal_scores(tokens), principal_scores(reference)))


def likeness(tokens: torch.Tensor, token: int) -> torch.Tensor:
    """Cosine similarity of all tokens (N, D) to one of them, once their mean is subtracted, which they share: (N,)"""
    centred = normalize(tokens - tokens.mean(dim=0), dim=-1)
    return centred @ centred[token]


def likeness_picture(sheet: Sheet, frames: torch.Tensor, values: torch.Tensor, token: int) -> torch.Tensor:
    """Similarities (N,) as colours over grey frames (T, 3, S, S), and a border around the token that they are to."""
    table = torch.from_numpy(colormaps[COLOUR_MAP](range(256))[:, :3]).float()
    heat = sheet.of_tokens(table[(values.clamp(0, 1) * 255).round().long()])
    below = sheet.of_frames(frames.mean(dim=1, keepdim=True).expand_as(frames))
    picture = (OPACITY * heat + (1 - OPACITY) * below).round().to(torch.uint8)
    left, top = sheet.corner_of(token)
    patch = (slice(None), slice(top, top + sheet.token_side), slice(left, left + sheet.token_side))
    inside = picture[patch].clone()
    picture[patch] = 255
    edge = min(BORDER, sheet.token_side // 4)
    kept = slice(edge, sheet.token_side - edge)
    picture[patch][:, kept, kept] = inside[:, kept, kept]
    return picture


def seen_picture(sheet: Sheet, model: PreTrainedModel, clip: torch.Tensor, kept: Kept) -> torch.Tensor | None:
    """What the encoder saw of the clip in training, None if its masks are not on record."""
    if kept.masks is None:
        return None
    return sheet.of_frames(masked(clip, kept.masks, model.config)[0])


def reconstruction_picture(
    sheet: Sheet, model: PreTrainedModel, clip: torch.Tensor, kept: Kept
) -> torch.Tensor | None:
    """What the model predicts in place of what it is not shown, None if its stage does not predict pixels."""
    if kept.objective is None:
        return None
    _, completed = reconstruct(model, clip, kept.masks, kept.objective)
    return sheet.of_frames(completed[0])


def class_scores(readout: Readout, clip: torch.Tensor) -> dict[str, float]:
    """The most likely classes, the likeliest first, with their probabilities."""
    settings = argparse.Namespace(batch_size=1, bf16=False, **READOUTS["classification"].options)
    (best,) = best_labels(readout.model, [clip], settings)
    return {row["label"]: row["score"] for row in best}


@torch.inference_mode()
def depth_film(readout: Readout, taken: Taken) -> bytes:
    """An mp4 of the clip beside its depth in colours and what these mean."""
    depth = readout.model(pixel_values_videos=taken.pixels.to(readout.model.device)).predicted_depth[0].float().cpu()
    box = scaled_box(taken.box, taken.frame_size, taken.frames.shape[-2:])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "depth.mp4")
        with DepthVideo(path, taken.frame_rate, READOUTS["depth"].options["max_depth"]) as film:
            film.add(taken.frames, depth[: len(taken.frames)], box)
        return path.read_bytes()
