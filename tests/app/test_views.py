"""The pictures of a clip, by what they must show."""

import av
import pytest
import torch

from layerlock_hf.app import views
from layerlock_hf.app.reading import Reader
from layerlock_hf.app.sheets import Sheet
from layerlock_hf.pretraining.reconstruction import masked, reconstruct


GRID_SIZE = (2, 4, 4)


@pytest.fixture
def clip() -> torch.Tensor:
    return torch.rand(1, 4, 3, 16, 16)


def test_what_is_alike_is_told_from_what_is_not():
    tokens = torch.randn(32, 16)
    tokens[7] = 3 * tokens[20] - 2 * tokens.mean(dim=0)
    tokens += 100.0  # what all share says nothing
    values = views.likeness(tokens, 20)
    assert values[20] == pytest.approx(1.0, abs=1e-4) and values[7] > 0.95
    assert values.argsort(descending=True)[:2].tolist() == [20, 7]
    assert views.likeness(torch.ones(32, 16), 20).abs().max() == 0  # features have collapsed


def test_the_chosen_patch_has_a_border(clip):
    sheet, token = Sheet(GRID_SIZE), 21
    values = torch.zeros(32)
    values[30] = 1.0
    picture = views.likeness_picture(sheet, clip[0], values, token)
    left, top = sheet.corner_of(token)
    side, edge = sheet.token_side, views.BORDER
    patch = picture[:, top : top + side, left : left + side]
    assert (patch[:, :edge] == 255).all() and (patch[:, :, -edge:] == 255).all()
    assert (patch[:, edge:-edge, edge:-edge] < 255).any()
    left, top = sheet.corner_of(30)
    alike = picture[:, top : top + side, left : left + side].float().mean()
    left, top = sheet.corner_of(29)
    assert alike > 2 * picture[:, top : top + side, left : left + side].float().mean()


def test_colours_stay_when_directions_turn():
    tokens = torch.randn(64, 8) * torch.tensor([9.0, 5.0, 3.0, *[0.1] * 5])
    turned, _ = torch.linalg.qr(torch.randn(8, 8))
    expected = views.feature_colours(tokens, tokens)
    assert torch.allclose(views.feature_colours(tokens @ turned, tokens), expected, atol=1e-4)


def test_what_is_seen_and_what_is_predicted(subject, clip):
    sheet, model, kept = Sheet(GRID_SIZE), subject.model(1), subject.kept[1]
    seen, completed = reconstruct(model, clip, kept.masks, kept.objective)
    assert torch.equal(masked(clip, kept.masks, model.config), seen)
    assert torch.equal(views.seen_picture(sheet, model, clip, kept), sheet.of_frames(seen[0]))
    assert torch.equal(views.reconstruction_picture(sheet, model, clip, kept), sheet.of_frames(completed[0]))
    assert views.reconstruction_picture(sheet, model, clip, subject.kept[2]) is None, "which predicts latents"


def test_classes_and_depth_are_those_of_the_readouts(subject, video, tmp_path):
    taken = Reader({kind: readout.processor for kind, readout in subject.readouts.items()}, 1, 30)(video)
    readout, pixels = subject.readouts["classification"], taken["classification"].pixels
    with torch.inference_mode():
        expected = readout.model(pixels).logits[0].softmax(dim=0).tolist()
    scores = views.class_scores(readout, pixels)
    assert scores == pytest.approx(dict(zip(("left", "right"), expected, strict=True)), abs=1e-5)

    (tmp_path / "film.mp4").write_bytes(views.depth_film(subject.readouts["depth"], taken["depth"]))
    with av.open(str(tmp_path / "film.mp4")) as film:
        frames = list(film.decode(video=0))
    assert len(frames) == len(taken["depth"].frames) == 4
    assert frames[0].width > 2 * frames[0].height
