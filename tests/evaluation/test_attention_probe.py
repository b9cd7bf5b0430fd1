import pytest
import torch
import torch.nn.functional as F

from layerlock_hf.evaluation import linear_accuracy, mean_features
from layerlock_hf.evaluation.attention_probe import ClipAnswers, Question, TokenAnswers, fit_readouts, predict


def salient_tokens(num_clips: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The class is the direction of the one token with a mark; all other tokens have directions at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_clips) % 4
    tokens = 0.1 * torch.randn(num_clips, 30, 12, generator=generator)
    tokens[:, :, :4] += F.one_hot(torch.randint(4, (num_clips, 30), generator=generator), 4)
    place = torch.randint(30, (num_clips,), generator=generator)
    clips = torch.arange(num_clips)
    tokens[clips, place, :4] = F.one_hot(labels, 4).float()
    tokens[clips, place, 4] = 3
    return tokens, labels


def test_attention_finds_what_means_hide():
    (tokens, labels), (test_tokens, test_labels) = salient_tokens(400, 1), salient_tokens(200, 2)
    question = Question(ClipAnswers, F.one_hot(labels, 4).float(), F.cross_entropy)
    (predicted,) = predict(fit_readouts(tokens, [question]), test_tokens)
    by_attention = (predicted.argmax(dim=1) == test_labels).float().mean()
    by_mean, _ = linear_accuracy(mean_features(tokens), labels, mean_features(test_tokens), test_labels)
    assert by_mean < 0.5 and by_attention > 0.9


def test_answers_per_token_see_the_token_and_the_clip():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(400, 10, 8, generator=generator) * 3 + 7
    tokens[:, 2, 2] += 20
    shift = tokens[:, 2:3, 1]  # the value of the token with the mark counts for all
    targets = (tokens[:, :, 0] - 7) / 3 + (shift - 7) / 3
    (predicted,) = predict(
        fit_readouts(tokens[:300], [Question(TokenAnswers, targets[:300], F.mse_loss)]), tokens[300:]
    )
    assert F.mse_loss(predicted, targets[300:]) < 0.25 * targets.var()
    with pytest.raises(ValueError, match="num_outputs must be 10, one per token, got 3"):
        fit_readouts(tokens, [Question(TokenAnswers, targets[:, :3], F.mse_loss)])


def test_same_seed_same_readouts_and_scale_is_no_matter():
    tokens, labels = salient_tokens(100, 1)
    questions = [Question(ClipAnswers, F.one_hot(labels, 4).float(), F.cross_entropy)]
    state = torch.get_rng_state()
    first, again, other = (predict(fit_readouts(tokens, questions, 20, seed), tokens)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)
    scaled = predict(fit_readouts(100 * tokens + 5, questions, 20), 100 * tokens + 5)[0]
    torch.testing.assert_close(scaled, first, atol=1e-2, rtol=1e-2)


def test_questions_do_not_disturb_each_other_and_missing_answers_are_skipped():
    tokens, labels = salient_tokens(100, 1)
    targets = F.one_hot(labels, 4).float()
    missing = targets.clone()
    missing[::2] = torch.nan
    asked = [Question(ClipAnswers, targets, F.cross_entropy), Question(ClipAnswers, missing, F.cross_entropy)]
    readouts = fit_readouts(tokens, asked, 30)
    assert all(values.isfinite().all() for values in predict(readouts, tokens))
    nothing = Question(ClipAnswers, torch.full((100, 4), torch.nan), F.cross_entropy)
    first = predict(fit_readouts(tokens, [asked[0], nothing], 30), tokens)[0]
    torch.testing.assert_close(first, predict(readouts, tokens)[0], atol=1e-4, rtol=1e-3)
