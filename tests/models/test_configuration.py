import pytest
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining


def test_json_round_trip(tiny_config, tmp_path):
    tiny_config.update(
        {"position_embedding": "learned", "rope_axis_fractions": [0.2, 0.2, 0.2], "num_frozen_layers": 3}
    )
    tiny_config.save_pretrained(tmp_path)
    loaded = LayerLockViTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"_name_or_path": ""} == tiny_config.to_dict() | {"_name_or_path": ""}
    assert (loaded.hidden_size, loaded.position_embedding, loaded.num_frozen_layers) == (32, "learned", 3)


def test_derived_sizes(tiny_config):
    assert tiny_config.grid_size == (2, 4, 4)
    assert tiny_config.num_tokens == 32
    assert tiny_config.values_per_token == 2 * 4 * 4 * 3


def test_one_pixel_mean_is_that_of_all_channels(tmp_path):
    config = LayerLockViTConfig(num_channels=2, pixel_mean=(0.6,), pixel_std=(0.2, 0.3))
    assert config.pixel_mean == [0.6, 0.6] and config.pixel_std == [0.2, 0.3]
    config.save_pretrained(tmp_path)
    assert LayerLockViTConfig.from_pretrained(tmp_path).pixel_mean == [0.6, 0.6]
    assert not LayerLockViTConfig().normalizes_pixels and LayerLockViTConfig(pixel_std=(0.5,)).normalizes_pixels


@pytest.mark.parametrize("preset, is_imagenet", [("vjepa-l", True), ("deit-tiny", True), ("4ds-g", False)])
def test_presets_normalize_pixels_as_their_papers_do(preset, is_imagenet):
    config = LayerLockViTConfig.from_preset(preset)
    assert config.normalizes_pixels == is_imagenet
    if is_imagenet:
        assert (config.pixel_mean, config.pixel_std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        assert (config.pixel_mean, config.pixel_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"image_size": 18}, ("image_size", "patch_size")),
        ({"patch_size": 0}, ("patch_size",)),
        ({"hidden_act": "nope"}, ("hidden_act",)),
        ({"rope_theta": 0}, ("rope_theta",)),
        ({"num_frames": 5}, ("num_frames", "tubelet_size")),
        ({"num_attention_heads": 3}, ("hidden_size", "num_attention_heads")),
        ({"num_decoder_layers": 6}, ("num_decoder_layers",)),
        ({"num_decoder_layers": 0}, ("num_decoder_layers",)),
        ({"num_frozen_layers": 7}, ("num_frozen_layers",)),
        ({"num_frozen_layers": -1}, ("num_frozen_layers",)),
        ({"readout_depth": 7}, ("readout_depth",)),
        ({"readout_depth": -1}, ("readout_depth",)),
        ({"readout_num_attention_heads": 3}, ("readout_hidden_size", "readout_num_attention_heads")),
        ({"readout_num_frames": 0}, ("readout_num_frames",)),
        ({"readout_intermediate_size": 0}, ("readout_intermediate_size",)),
        ({"decoding_patch_size": (2, 8)}, ("decoding_patch_size",)),
        ({"decoding_patch_size": (2, 8, 0)}, ("decoding_patch_size",)),
        ({"pixel_mean": [0.5, 0.5]}, ("pixel_mean", "num_channels=3")),
        ({"pixel_mean": [float("nan")]}, ("pixel_mean",)),
        ({"pixel_std": [1.0, 1.0, 0.0]}, ("pixel_std", "positive")),
        ({"rope_axis_fractions": (0.5, 0.5)}, ("rope_axis_fractions",)),
        ({"rope_axis_fractions": (0.5, 0.5, 0.1)}, ("rope_axis_fractions",)),
        ({"rope_axis_fractions": (0.5, 0.5, -0.1)}, ("rope_axis_fractions",)),
    ],
)
def test_contradictory_sizes_are_named(tiny_config, fields, named):
    with pytest.raises(ValueError) as error:
        LayerLockViTConfig(**{**tiny_config.to_dict(), **fields})
    assert all(name in str(error.value) for name in named)


def test_sizes_are_checked_again_by_the_model(tiny_config):
    tiny_config.num_decoder_layers = 6
    with pytest.raises(ValueError, match="num_decoder_layers"):
        LayerLockViTForPretraining(tiny_config)


def test_wrong_type_or_option_is_refused():
    with pytest.raises(Exception, match="position_embedding"):
        LayerLockViTConfig(position_embedding="sine")


def test_from_preset_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="preset must be one of .*4ds-g.* got '4ds-x'"):
        LayerLockViTConfig.from_preset("4ds-x")
    with pytest.raises(ValueError, match="hiden_size"):
        LayerLockViTConfig.from_preset("tiny", hiden_size=4)
    assert LayerLockViTConfig.from_preset("4ds-g", image_size=32).image_size == 32


# Parameter counts in millions that Table 1 of the paper prints
@pytest.mark.parametrize("preset, millions", [("4ds-g", 1848), ("4ds-e", 3811)])
def test_parameter_count_is_the_papers(preset, millions):
    with torch.device("meta"):
        model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset(preset))
    breakdown = model.parameter_breakdown()
    print(preset, breakdown, model.num_parameters())
    assert sum(breakdown.values()) == model.num_parameters()
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.005)


@pytest.mark.parametrize("fields", [{}, {"decoding_tokens": "learned", "position_embedding": "learned"}])
@pytest.mark.parametrize("use_final_norm", [False, True])
def test_breakdown_sums_up(tiny_config, fields, use_final_norm):
    tiny_config.update({**fields, "use_final_norm": use_final_norm})
    model = LayerLockViTForPretraining(tiny_config)
    assert sum(model.parameter_breakdown().values()) == sum(p.numel() for p in model.parameters())
