"""Small readouts by attention, trained on frozen tokens: they find what a regression on means of tokens cannot.

A readout has one learned query per head and reads the tokens as they are: no key or value is projected, so that a step
costs thin matrix products alone. B clips, N tokens, D width, H heads of a question, K values of an answer.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


# Few: with 4 heads and 200 steps a readout of random weights learns motion by itself, to 55% where one of an MAE reads
# 62%; with 2 heads and 100 steps it is 28% and 60%
NUM_HEADS = 2
NUM_STEPS = 100
NUM_HIDDEN = 32
BATCH_SIZE = 32  # clips
MAX_SAMPLE = 256  # clips that the deviation of tokens is measured on
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1
ONE_SEEDS = threading.Lock()  # threads share the global generator


class Readouts(nn.Module):
    """Answers to several questions at once, each from heads of its own.

    What is pooled is standardised tokens, but it is the pooled means that are standardised: it comes to the same.

    Args:
        mean, std: of the tokens, per channel (D,).
        answers: for each question the module that makes its answers of the tokens and of what its heads pool
            (B, H, D): `ClipAnswers` or `TokenAnswers`.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, answers: Sequence[nn.Module]):
        super().__init__()
        width = len(mean)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        num_queries = len(answers) * NUM_HEADS
        self.queries = nn.Parameter(torch.randn(width, num_queries) / width)
        self.answers = nn.ModuleList(answers)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """(B, N, D) -> the answers to each question"""
        # The mean of the tokens would add the same to all scores of a query
        weights = (tokens @ (self.queries / self.std.unsqueeze(1))).softmax(dim=1).transpose(1, 2)
        pooled = (weights @ tokens - self.mean) / self.std
        parts = zip(self.answers, pooled.split(NUM_HEADS, dim=1), strict=True)
        return [answer(tokens, own, self.mean, self.std) for answer, own in parts]


class ClipAnswers(nn.Module):
    """K values per clip, linear in what the heads pool."""

    def __init__(self, num_tokens: int, width: int, num_outputs: int):
        super().__init__()
        self.out = nn.Linear(NUM_HEADS * width, num_outputs)
        nn.init.zeros_(self.out.weight)

    def forward(self, tokens, pooled, mean, std) -> torch.Tensor:
        """(B, K)"""
        return self.out(pooled.flatten(1))


class TokenAnswers(nn.Module):
    """One value per token: a small hidden layer sees the token, its position, and what the heads pool of the clip."""

    def __init__(self, num_tokens: int, width: int, num_outputs: int):
        super().__init__()
        if num_outputs != num_tokens:
            raise ValueError(f"num_outputs must be {num_tokens}, one per token, got {num_outputs}")
        self.own = nn.Parameter(torch.randn(width, NUM_HIDDEN) / math.sqrt(width))
        self.context = nn.Linear(NUM_HEADS * width, NUM_HIDDEN)
        self.positions = nn.Parameter(torch.zeros(num_tokens, NUM_HIDDEN))
        self.out = nn.Linear(NUM_HIDDEN, 1)

    def forward(self, tokens, pooled, mean, std) -> torch.Tensor:
        """(B, N)"""
        own = self.own / std.unsqueeze(1)
        shared = self.context(pooled.flatten(1)).unsqueeze(1) + self.positions - mean @ own
        return self.out(F.gelu(tokens @ own + shared, approximate="tanh")).squeeze(2)


@dataclass(frozen=True)
class Question:
    """What is to be learned about clips.

    Args:
        answers: `ClipAnswers` or `TokenAnswers`.
        targets: (B, K); rows with NaN have no answer.
        loss: of predictions and targets, (B', K) each -> ().
    """

    answers: type[nn.Module]
    targets: torch.Tensor
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def error(self, predicted: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The loss of predictions (B', K) for the clips `ids` (B',); 0 if none has an answer."""
        targets = self.targets[ids]
        has_answer = ~targets.isnan().any(dim=1)
        return self.loss(predicted[has_answer], targets[has_answer]) if has_answer.any() else predicted.sum() * 0


def statistics(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of every channel over clips and tokens, (B, N, D) -> (D,) each."""
    mean = tokens.mean(dim=(0, 1))
    # Of clips at even distances: deviations of all took longer than half the training
    sample = tokens[:: max(1, len(tokens) // MAX_SAMPLE)]
    return mean, (sample - mean).square().mean(dim=(0, 1)).sqrt() + 1e-6


def shuffled_batches(num_clips: int, num_steps: int) -> tuple[torch.Tensor, ...]:
    """Indices of the clips of every step, epoch after epoch."""
    num_epochs = -(-num_steps * BATCH_SIZE // num_clips)
    order = torch.cat([torch.randperm(num_clips) for _ in range(num_epochs)])
    return order[: num_steps * BATCH_SIZE].split(BATCH_SIZE)


def fit_readouts(
    tokens: torch.Tensor, questions: Sequence[Question], num_steps: int = NUM_STEPS, seed: int = 0
) -> Readouts:
    """Readouts of tokens (B, N, D) for all questions, which share batches and nothing else.

    AdamW runs for a fixed number of steps, with the learning rate on half a cosine.
    """
    with ONE_SEEDS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = tokens.shape[1:]
        answers = [question.answers(*shape, question.targets.shape[1]) for question in questions]
        readouts = Readouts(*statistics(tokens), answers)
        batches = shuffled_batches(len(tokens), num_steps)
    optimizer = torch.optim.AdamW(readouts.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for ids in batches:
        predicted = readouts(tokens[ids])
        loss = sum(question.error(values, ids) for question, values in zip(questions, predicted, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return readouts


@torch.inference_mode()
def predict(readouts: Readouts, tokens: torch.Tensor, batch_size: int = 128) -> list[torch.Tensor]:
    """(B, N, D) -> the answers to each question, (B, K)"""
    parts = [readouts(batch) for batch in tokens.split(batch_size)]
    return [torch.cat(values) for values in zip(*parts, strict=True)]
