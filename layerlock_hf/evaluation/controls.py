"""What the scores of an encoder on the ladder are to be compared to: less than an encoder, and labels.

B clips, T frames, N tokens of the grid (t, h, w), D width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..models import LayerLockViTModel, patchify
from .attention_probe import Readouts, shuffled_batches
from .ladder import RUNGS, Rung, Scaling, answerable, measured
from .metrics import measure
from .probe_clips import ProbeClips


CEILING_LEARNING_RATE = 1e-3
CEILING_WEIGHT_DECAY = 0.05
CEILING_WARMUP = 0.05  # share of the steps
LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in brightness (ITU-R BT.601)


class OneFrame:
    """An encoder that sees the middle frame of a clip, and no other: what it scores needs no motion.

    It encodes the frame once, as a still clip of one step of time, and gives these tokens for every step. A still clip
    of the whole length takes four times as long for the same picture.
    """

    def __init__(self, encoder: LayerLockViTModel):
        self.encoder, self.device = encoder, encoder.device

    def grid_size(self, video: torch.Tensor) -> tuple[int, int, int]:
        return self.encoder.grid_size(video)

    def tap(self, video: torch.Tensor, depths: list[int]) -> list[torch.Tensor]:
        """(B, T, C, H, W) -> one (B, N, D) per depth"""
        num_steps = self.grid_size(video)[0]
        middle = video.shape[1] // 2
        still = video[:, middle : middle + 1].expand(-1, video.shape[1] // num_steps, -1, -1, -1)
        return [tokens.repeat(1, num_steps, 1) for tokens in self.encoder.tap(still, depths)]


class FrameDifferences:
    """No encoder: a token is how much the brightness of every pixel of its box changes from the frame before.

    Args:
        config: has the `tubelet_size` and `patch_size` of the boxes.
    """

    device = torch.device("cpu")

    def __init__(self, config):
        self.tubelet_size, self.patch_size = config.tubelet_size, config.patch_size

    def grid_size(self, video: torch.Tensor) -> tuple[int, int, int]:
        _, num_frames, _, height, width = video.shape
        return num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def tap(self, video: torch.Tensor, depths: list[int]) -> list[torch.Tensor]:
        """(B, T, C, H, W) -> (B, N, D), the same for every depth"""
        brightness = torch.einsum("btchw,c->bthw", video, torch.tensor(LUMA)).unsqueeze(2)
        changes = brightness.diff(dim=1).abs()
        changes = torch.cat([changes[:, :1], changes], dim=1)  # no frame comes before the first
        return [patchify(changes, self.tubelet_size, self.patch_size)] * len(depths)


def constant_scores(fit: ProbeClips, test: ProbeClips, rungs: Sequence[Rung] = RUNGS) -> dict:
    """The scores of answering every clip alike, by the mean answer: the most frequent class, the mean map of depth."""
    scores = {}
    for rung in answerable(rungs, fit, test):
        known, asked = (answers[~answers.isnan().any(dim=1)] for answers in map(rung.answers, (fit, test)))
        found = measure(rung.form.measure, rung.form.score_samples(known.mean(dim=0).expand_as(asked), asked))
        scores |= {f"{rung.name}_{metric}": found[metric] for metric in rung.metrics}
    return scores


class LabelledEncoder(nn.Module):
    """An encoder with readouts of its last layer, all of which learn.

    Args:
        config: of the encoder.
        rungs: what is answered.
        scalings: mean and deviation of the answers to each.
        sizes: values of an answer to each.
    """

    def __init__(self, config, rungs: Sequence[Rung], scalings: Sequence[Scaling], sizes: Sequence[int]):
        super().__init__()
        self.encoder = LayerLockViTModel(config)
        self.scalings = scalings
        shape = (math.prod(config.grid_size), config.hidden_size)
        answers = [rung.form.answers(*shape, size) for rung, size in zip(rungs, sizes, strict=True)]
        self.readouts = Readouts(torch.zeros(shape[1]), torch.ones(shape[1]), answers)

    def read(self, video: torch.Tensor) -> list[torch.Tensor]:
        """(B, T, C, H, W) in [0, 1] -> the answers to each rung as they are learned, (B, K)"""
        (tokens,) = self.encoder.tap(video, [len(self.encoder.layers)])
        return self.readouts(F.layer_norm(tokens, tokens.shape[-1:]))

    def forward(self, video: torch.Tensor) -> list[torch.Tensor]:
        """(B, T, C, H, W) in [0, 1] -> the answers to each rung, (B, K)"""
        return [scaling.undo(values) for scaling, values in zip(self.scalings, self.read(video), strict=True)]


def train_with_labels(
    config, clips: ProbeClips, num_steps: int, rungs: Sequence[Rung] = RUNGS, seed: int = 0
) -> tuple[LabelledEncoder, list[Rung]]:
    """Trains the same ViT from scratch to answer, which tells how much there is to read: the ceiling of the ladder.

    Args:
        config: of the encoder.
        clips: with answers; those that lack one to a rung, as videos without depth do, teach the others.
        num_steps: of 32 clips each. The more labelled clips, the more steps are worth it.
        rungs: what to learn; those of one set of scenes.
        seed: of the weights and of the order of the clips.

    Returns:
        The model in eval mode, and the rungs that its answers are to, in order: those with enough clips.
    """
    learned = answerable(rungs, clips)
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not learned:
        raise ValueError(f"clips must be enough to fit at least one rung, got {len(clips)}")
    questions, scalings = [], []
    for rung in learned:
        question, scaling = rung.question(rung.answers(clips))
        questions.append(question)
        scalings.append(scaling)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LabelledEncoder(config, learned, scalings, [question.targets.shape[1] for question in questions])
        batches = shuffled_batches(len(clips), num_steps)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": CEILING_WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, CEILING_LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    warmup = max(1, round(CEILING_WARMUP * num_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / num_steps))
    )
    model.train()
    for ids in tqdm(batches, desc="training with labels"):
        predicted = model.read(clips.clips[ids].float() / 255)
        loss = sum(question.error(values, ids) for question, values in zip(questions, predicted, strict=True))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), learned


@torch.inference_mode()
def labelled_scores(model: LabelledEncoder, rungs: Sequence[Rung], test: ProbeClips, batch_size: int = 32) -> dict:
    """What a model of `train_with_labels` scores, by the names of `climb`."""
    parts = [model(batch.float() / 255) for batch in test.clips.split(batch_size)]
    scores, edges = {}, {}
    for rung, predicted in zip(rungs, (torch.cat(values) for values in zip(*parts, strict=True)), strict=True):
        has_answer = ~rung.answers(test).isnan().any(dim=1)
        if has_answer.any():
            own = measured(rung, predicted[has_answer], test)
            edges |= own.pop("intervals")
            scores |= own
    return {**scores, "intervals": edges}
