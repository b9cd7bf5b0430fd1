"""What the encoder of a run sees in a few clips, stage by stage and depth by depth, as colours.

The three directions in which the tokens of all clips differ most (PCA) become red, green and blue. Every stage and
depth has its own three: features of different stages lie in different spaces, and directions shared by all of them
would mostly show how far these lie apart. But PCA leaves open which direction comes first and which way it points, so
that colours would jump from picture to picture. Each picture is therefore rotated to where its colours are most like
those of the next one (orthogonal Procrustes, on the same tokens): what changes with the slider has changed in the
features.
"""

import torch

from ..evaluation.probes import encode
from ..hub.words import public_text
from ..pretraining.exporting import load
from .clips import Clips
from .pictures import as_bytes, data_uri, enlarged, montage
from .spreading import spread


NUM_SHOWN, NUM_TIMES = 3, 4  # clips, and moments of each
MAX_DEPTHS = 8
TILE = 96  # pixels, about, of a moment of a clip
REACH = 2.2  # standard deviations from the mean to the end of a colour
BATCH_SIZE = 4


def principal_scores(tokens: torch.Tensor) -> torch.Tensor:
    """Where tokens lie along the three directions in which they differ most, in standard deviations: (n, D) -> (n, 3).

    Where they do not differ, as after a collapse, it is 0.
    """
    centred = tokens.double() - tokens.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    scores = centred @ directions[:, -3:].flip(1)
    deviations = variances[-3:].flip(0).clamp_min(0).sqrt()
    # Relative to the size of the features: what is left of constant ones is rounding
    is_real = deviations > 1e-6 * tokens.double().square().mean().sqrt()
    return torch.where(is_real, scores / deviations.where(is_real, 1.0), 0.0)


def rotated_like(scores: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The scores (n, 3), rotated and reflected to where they are closest to the reference (n, 3)."""
    left, _, right = torch.linalg.svd(scores.T @ reference)
    return scores @ (left @ right)


def colours(scores: torch.Tensor) -> torch.Tensor:
    """(n, 3) -> red, green and blue in [0, 1]."""
    return (0.5 + scores / (2 * REACH)).clamp(0, 1)


def feature_pictures(run) -> dict:
    """For the page: the clips, and a picture of their features for every snapshot of a run and every depth.

    Args:
        run: a `recorded.Run`.

    Raises:
        ValueError: if it has kept no models, or there are no videos.
    """
    snapshots, clips = run.snapshots, run.clips
    depths = spread(range(1, run.planned.config.num_hidden_layers + 1), MAX_DEPTHS)
    rows = [[] for _ in snapshots]
    following = None
    for place in reversed(range(len(snapshots))):
        encoder = load(snapshots[place].source).float().eval().base_model
        tokens = encode(encoder, clips.frames, depths, BATCH_SIZE)
        grid_size = encoder.grid_size(clips.frames)
        scores = [principal_scores(one.flatten(0, 1)) for one in tokens]
        # At the end of the run each depth like the next deeper one, before it like the same depth later
        for level in reversed(range(len(depths))):
            if following is not None:
                scores[level] = rotated_like(scores[level], following[level])
            elif level + 1 < len(depths):
                scores[level] = rotated_like(scores[level], scores[level + 1])
        following = scores
        rows[place] = [_picture(one, len(clips.frames), grid_size) for one in scores]
    num_shown = min(NUM_SHOWN, len(clips.frames))
    return {
        "clips": data_uri(shown_frames(clips, run.planned.config.tubelet_size, grid_size), is_photo=True),
        "names": clips.names[:num_shown],
        "sources": clips.sources,
        "num_clips": len(clips.frames),
        "num_tokens": " × ".join(map(str, grid_size)),
        "depths": depths,
        "num_decoding": run.planned.config.num_decoder_layers if run.planned.config.decoder == "trunk" else 0,
        "snapshots": [
            {"name": one.name, "step": one.step, "num_frozen": one.num_frozen, "pictures": pictures}
            for one, pictures in zip(snapshots, rows, strict=True)
        ],
        "left_out": [public_text(line) for line in run.left_out],
    }


def _picture(scores: torch.Tensor, num_clips: int, grid_size: tuple[int, int, int]) -> str:
    grid = colours(scores).view(num_clips, *grid_size, 3)[:NUM_SHOWN]
    grid = grid[:, spread(range(grid_size[0]), NUM_TIMES)].permute(0, 1, 4, 2, 3)
    return data_uri(montage(enlarged(as_bytes(grid), tile_factor(grid_size))))


def tile_factor(grid_size: tuple[int, int, int]) -> int:
    """Pixels of the side of a token in pictures."""
    return max(1, round(TILE / max(grid_size[1:])))


def shown_frames(clips: Clips, tubelet_size: int, grid_size: tuple[int, int, int]) -> torch.Tensor:
    """The first frames of the moments that are shown, laid out as their features: (3, H, W)."""
    moments = [tubelet_size * time for time in spread(range(grid_size[0]), NUM_TIMES)]
    frames = clips.frames[:NUM_SHOWN, moments].float()
    factor = tile_factor(grid_size)
    size = [side * factor for side in grid_size[1:]]
    tiles = torch.nn.functional.interpolate(frames.flatten(0, 1), size, mode="bilinear", antialias=True)
    return montage(tiles.round().clamp(0, 255).to(torch.uint8).unflatten(0, frames.shape[:2]))
