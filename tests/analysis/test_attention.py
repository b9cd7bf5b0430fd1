import pytest
import torch
import transformers

from layerlock_hf import LayerLockViTModel
from layerlock_hf.analysis.attention import attention_distances, attention_modules, mean_distance, token_distances
from layerlock_hf.models import TransformersEncoder, TransformersEncoderConfig


SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
GRID, BOX = (2, 2, 2), (2, 4, 4)
DISTANCES = token_distances(GRID, BOX)
UNIFORM = DISTANCES.mean(dim=(1, 2))  # what looking everywhere alike gives


def test_distances_of_tokens():
    plane, time = DISTANCES
    assert plane[0, 3].item() == pytest.approx(4 * 2**0.5) and plane[0, 4] == 0
    assert (time[0, 3], time[0, 4], time[7, 0]) == (0, 2, 2)


def test_attention_to_oneself_and_to_all():
    ids = torch.arange(8)
    itself = torch.eye(8).expand(3, 2, 8, 8)
    assert mean_distance(itself, ids, DISTANCES).tolist() == [0, 0]
    torch.testing.assert_close(mean_distance(torch.full((3, 2, 8, 8), 1 / 8), ids, DISTANCES), UNIFORM)
    torch.testing.assert_close(UNIFORM[1], torch.tensor(1.0))
    next_frame = torch.eye(8).roll(4, dims=1).expand(1, 1, 8, 8)
    assert mean_distance(next_frame, ids, DISTANCES).tolist() == [0, 2]


def test_tokens_outside_the_grid_are_left_out():
    weights = torch.zeros(1, 1, 9, 9)
    weights[..., 0] = 0.9  # most goes to the class token
    weights[..., 1:, 1:] += 0.1 * torch.eye(8)
    assert mean_distance(weights, torch.arange(1, 9), DISTANCES).tolist() == [0, 0]


def test_frame_by_frame():
    """Two frames of a class token and four others: nothing is looked at in the other one."""
    weights = torch.full((2 * 3, 1, 5, 5), 1 / 5)
    ids = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9])
    found = mean_distance(weights, ids, DISTANCES)
    assert found.tolist() == pytest.approx([DISTANCES[0, :4, :4].mean().item(), 0])
    with pytest.raises(ValueError, match="not among all tokens"):
        mean_distance(weights[:5], ids, DISTANCES)


def uniform(encoder):
    """Keys of zeros look everywhere alike."""
    for name, parameter in encoder.named_parameters():
        if "key" in name or "k_proj" in name:
            torch.nn.init.zeros_(parameter)
    return encoder.eval()


def test_our_encoder(tiny_config):
    encoder = uniform(LayerLockViTModel(tiny_config))
    clips = torch.randint(0, 255, (2, 4, 3, 16, 16), dtype=torch.uint8)
    implementation = encoder.config._attn_implementation
    found = attention_distances(encoder, clips)
    expected = token_distances((2, 4, 4), (2, 4, 4)).mean(dim=(1, 2))
    torch.testing.assert_close(found, expected.expand(6, 2))
    assert encoder.config._attn_implementation == implementation != "eager"


@pytest.mark.parametrize("kind", ["videomae", "clip"])
def test_models_of_others(kind):
    """A model of clips, and one of frames with a class token."""
    if kind == "videomae":
        config = transformers.VideoMAEConfig(**SIZES, image_size=16, patch_size=8, num_frames=4, tubelet_size=2)
        expected, layout = token_distances((2, 2, 2), (2, 8, 8)).mean(dim=(1, 2)), (4, 16)
    else:
        config = transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)
        expected, layout = token_distances((1, 2, 2), (1, 8, 8)).mean(dim=(1, 2)), (4, 16)
    encoder = TransformersEncoder(
        TransformersEncoderConfig(encoder_config=config, num_frames=layout[0], image_size=layout[1])
    )
    clips = torch.randint(0, 255, (2, 4, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(attention_distances(uniform(encoder), clips), expected.expand(2, 2))


def test_models_that_show_no_attention():
    config = transformers.TimesformerConfig(**SIZES, image_size=16, patch_size=8, num_frames=4)
    encoder = TransformersEncoder(TransformersEncoderConfig(encoder_config=config, num_frames=4, image_size=16))
    with pytest.raises(ValueError, match="attention_distance must be left out for a timesformer model, got no"):
        attention_modules(encoder)
