"""What the tokens of one depth are like, gathered batch by batch in memory that does not depend on their number.

B clips of a batch, n of all, N tokens of a clip, P of them kept, D width.
"""

import math

import torch
import torch.nn.functional as F

from ..training.diagnostics import MAX_ROWS, effective_rank, feature_statistics
from .spectra import alpha_req, eigenvalues, participation_ratio


OUTLIER_FACTOR = 3  # a token is an outlier if its norm is beyond this many medians


def kept_tokens(num_clips: int, num_tokens: int) -> torch.Tensor:
    """Which tokens of every clip are kept, (P,): evenly spread, the same for all, at most `MAX_ROWS` of all clips."""
    num_kept = max(1, min(num_tokens, MAX_ROWS // num_clips))
    return ((torch.arange(num_kept) + 0.5) * num_tokens / num_kept).long()


class TokenStatistics:
    """Adds up what measures of tokens need, so that the tokens themselves can go.

    Args:
        num_clips: how many clips there will be, at most.
    """

    def __init__(self, num_clips: int):
        self.num_clips = num_clips
        self._means, self._kept, self._norms = [], [], []
        self._num_seen = self._num_tokens = 0
        self._sum = 0  # of all directions, (D,)
        self._squares = 0.0  # of the sums of each clip's directions

    def add(self, tokens: torch.Tensor):
        """Tokens of further clips, (B, N, D)."""
        tokens = tokens.float()
        self._num_tokens = tokens.shape[1]
        self._num_seen += len(tokens)
        self._means.append(tokens.mean(dim=1).cpu())
        self._kept.append(tokens[:, kept_tokens(self.num_clips, self._num_tokens)].cpu())
        self._norms.append(tokens.norm(dim=2).cpu())
        # The sum of the cosines of all pairs is the square of the sum of all directions, less their number
        directions = F.normalize(F.layer_norm(tokens, tokens.shape[2:]), dim=2).sum(dim=1).double()
        self._sum = self._sum + directions.sum(dim=0)
        self._squares += directions.square().sum().item()

    @property
    def means(self) -> torch.Tensor:
        """The mean over the tokens of every clip, (n, D)."""
        return torch.cat(self._means)

    @property
    def kept(self) -> torch.Tensor:
        """The tokens that were kept of every clip, (n, P, D)."""
        return torch.cat(self._kept)

    def cosine_within(self) -> float:
        """Mean cosine of two tokens of one clip, each normalised by a LayerNorm without weights (arXiv 2601.09040)."""
        num = self._num_tokens
        pairs = self._num_seen * num * (num - 1)
        return (self._squares - self._num_seen * num) / pairs if pairs else math.nan

    def cosine_between(self) -> float:
        """Mean cosine of two tokens of different clips, normalised as those of `cosine_within`."""
        pairs = self._num_seen * (self._num_seen - 1) * self._num_tokens**2
        return (self._sum.square().sum().item() - self._squares) / pairs if pairs else math.nan

    def norms(self) -> tuple[float, float]:
        """The mean norm of all tokens, and the share whose norm is beyond `OUTLIER_FACTOR` medians.

        Darcet et al. (2024, "Vision Transformers Need Registers") draw the line at a norm of 150, by eye, for DINOv2
        alone, whose other tokens have norms up to about 100. A multiple of the median suits every model and depth.
        """
        norms = torch.cat(self._norms)
        return norms.mean().item(), (norms > OUTLIER_FACTOR * norms.median()).float().mean().item()

    def measures(self) -> dict[str, float]:
        """All of them by name.

        Ranks, spectrum and deviation are of the kept tokens, less the mean over the clips at every position (see
        `feature_statistics`); RankMe is of the means, as they are, since that is what it was made for.
        """
        kept = self.kept
        spectrum = eigenvalues((kept - kept.mean(dim=0)).flatten(0, 1))
        mean_norm, outliers = self.norms()
        return {
            **{name: value.item() for name, value in feature_statistics(kept).items()},
            "participation_ratio": participation_ratio(spectrum),
            "alpha_req": alpha_req(spectrum),
            "rankme": effective_rank(self.means).item(),
            "cosine_within": self.cosine_within(),
            "cosine_between": self.cosine_between(),
            "token_norm": mean_norm,
            "norm_outliers": outliers,
        }
