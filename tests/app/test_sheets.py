"""Where tokens are in pictures, and what is at a place in them."""

import pytest
import torch

from layerlock_hf.app.sheets import MAX_MOMENTS, Sheet
from layerlock_hf.reporting.pictures import GAP, GREY


@pytest.mark.parametrize("grid_size", [(2, 4, 4), (8, 3, 5), (6, 14, 14), (1, 1, 1)])
def test_what_is_clicked_is_what_is_shown_there(grid_size):
    sheet = Sheet(grid_size)
    num_tokens = torch.Size(grid_size).numel()
    for token in range(num_tokens):
        values = torch.zeros(num_tokens, 3)
        values[token] = 1.0
        picture = sheet.of_tokens(values)
        left, top = sheet.corner_of(token)
        within = sheet.token_side - 1
        assert (picture[:, top : top + within + 1, left : left + within + 1] == 255).all()
        assert (picture == 255).sum() == 3 * sheet.token_side**2
        assert sheet.token_at(left, top) == sheet.token_at(left + within, top + within) == token


def test_a_click_on_a_gap_is_one_on_the_patch_before_and_one_where_no_moment_is_on_none():
    sheet = Sheet((5, 2, 2))  # two rows of four, three of which are empty
    width = 2 * sheet.token_side
    assert sheet.token_at(width + GAP - 1, 0) == 1
    assert sheet.token_at(0, width + GAP) == 16
    assert sheet.token_at(width + GAP, width + GAP) is None
    assert (sheet.of_tokens(torch.zeros(20, 3))[:, width + GAP :, width + GAP :] == GREY).all()


def test_frames_lie_where_their_tokens_do():
    sheet = Sheet((2, 2, 2))
    frames = torch.zeros(4, 3, 8, 8)
    frames[2] = 1.0  # the first frame of the second moment
    values = torch.zeros(8, 3)
    values[4:] = 1.0
    assert torch.equal(sheet.of_frames(frames), sheet.of_tokens(values))


def test_of_long_clips_some_moments_are_shown():
    sheet = Sheet((20, 2, 2))
    assert len(sheet.moments) == MAX_MOMENTS and sheet.moments[-1] == 19
    assert sheet.middle // 4 in sheet.moments
