"""Clips with answers, and encoders that know them or know nothing, for tests of the ladder."""

import torch

from layerlock_hf.evaluation import ProbeClips


GRID = (2, 2, 2)
NUM_TOKENS, WIDTH = 8, 24


def draw_clips(num_videos: int, seed: int, clips_per_video: int = 2) -> ProbeClips:
    """Clips whose first two frames are of noise and hold nothing; answers are random."""
    generator = torch.Generator().manual_seed(seed)
    num_clips = num_videos * clips_per_video

    def draw(*shape):
        return torch.rand(num_clips, *shape, generator=generator)

    return ProbeClips(
        clips=(draw(4, 3, 8, 8) * 255).byte(),
        labels=torch.arange(num_clips) * 5 % 8,
        metres=1 + 4 * draw(NUM_TOKENS),
        positions=draw(2),
        velocities=draw(2) - 0.5,
        futures=draw(2),
        videos=torch.arange(num_videos).repeat_interleave(clips_per_video),
    )


class FakeEncoder:
    """Gives tokens from a table: at depths in `knows` all answers, at others noise."""

    device = torch.device("cpu")

    def __init__(self, *sets: ProbeClips, knows=(), noise: float = 0.0):
        self.tables, self.knows, self.noise = {}, knows, noise
        generator = torch.Generator().manual_seed(0)
        for clips in sets:
            known = [
                torch.nn.functional.one_hot(clips.labels, 8).float(),
                clips.positions,
                clips.velocities,
                clips.futures,
            ]
            known = torch.cat(known, dim=1)[:, None].expand(-1, NUM_TOKENS, -1)
            tokens = torch.randn(len(clips), NUM_TOKENS, WIDTH, generator=generator)
            told = torch.cat([known, clips.metres.unsqueeze(2), tokens[:, :, known.shape[2] + 1 :]], dim=2)
            for index, clip in enumerate(clips.clips):
                self.tables[clip.numpy().tobytes()] = (told[index], tokens[index])

    def grid_size(self, video):
        return GRID

    def tap(self, video, depths):
        found = [self.tables[(clip * 255).round().byte().numpy().tobytes()] for clip in video]
        told, noise = (torch.stack(tokens) for tokens in zip(*found, strict=True))
        return [told if depth in self.knows else noise for depth in depths]
