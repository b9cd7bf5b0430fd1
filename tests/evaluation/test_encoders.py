import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVideoClassification

from layerlock_hf.evaluation import load_encoder
from layerlock_hf.models import (
    LayerLockVideoProcessor,
    LayerLockViTConfig,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTModel,
    TransformersEncoder,
    TransformersEncoderConfig,
    TransformersEncoderForVideoClassification,
)


ATTENTION = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
SIZES = {**ATTENTION, "intermediate_size": 32, "image_size": 16, "num_frames": 4, "initializer_range": 0.2}
IMAGES = {**ATTENTION, "image_size": 16, "patch_size": 8, "initializer_range": 0.2}


def make_videomae():
    decoder = {f"decoder_{name}": value for name, value in {**ATTENTION, "intermediate_size": 32}.items()}
    config = transformers.VideoMAEConfig(**SIZES, **decoder, patch_size=8, tubelet_size=2)
    return transformers.VideoMAEForPreTraining(config)


def make_vjepa2():
    predictor = {"pred_hidden_size": 16, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 2}
    config = transformers.VJEPA2Config(**ATTENTION, **predictor, crop_size=16, patch_size=8, frames_per_clip=4)
    return transformers.VJEPA2ForVideoClassification(config)


def make_clip():
    text = {**ATTENTION, "intermediate_size": 32, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=IMAGES)
    return transformers.CLIPModel(config)


# How to make a checkpoint as people publish them, the part that is read, frames
CHECKPOINTS = {
    "videomae": (make_videomae, "videomae", 4),
    "vjepa2": (make_vjepa2, "vjepa2", 4),
    "timesformer": (
        lambda: transformers.TimesformerForVideoClassification(transformers.TimesformerConfig(**SIZES, patch_size=8)),
        "timesformer",
        4,
    ),
    "vivit": (
        lambda: transformers.VivitForVideoClassification(transformers.VivitConfig(**SIZES, tubelet_size=[2, 8, 8])),
        "vivit",
        4,
    ),
    "dinov2": (lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**IMAGES)), "dinov2", 16),
    "dinov3": (lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**IMAGES)), "", 16),
    "clip": (make_clip, "vision_model", 16),
}


def write(path, **settings):
    (path / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_others(kind, tmp_path):
    make, part, num_frames = CHECKPOINTS[kind]
    source = make()
    source.save_pretrained(tmp_path)
    write(tmp_path, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    encoder = load_encoder(tmp_path)
    assert type(encoder) is TransformersEncoder and not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    config = encoder.config
    assert (config.num_frames, config.image_size) == (num_frames, 16)
    assert (config.hidden_size, config.num_hidden_layers) == (16, 2)
    weights = source.get_submodule(part).state_dict()
    read = encoder.parameters_up_to(2)
    assert len(read) > 20
    assert all(torch.equal(encoder.model.state_dict()[name], weights[name]) for name in read)
    video = torch.rand(1, num_frames, 3, 16, 16)
    reference = TransformersEncoder(config, source.get_submodule(part)).eval()
    assert torch.equal(encoder.tap(video, [2])[0], reference.tap(video, [2])[0])
    torch.testing.assert_close(config.pixel_mean, [0.1, 0.2, 0.3])
    torch.testing.assert_close(config.pixel_std, [0.4, 0.5, 0.6])


def test_checkpoints_of_ours(tiny_config, tmp_path):
    tiny_config.update({"readout_hidden_size": 16, "readout_num_attention_heads": 2, "decoding_patch_size": [2, 4, 4]})
    video = torch.rand(1, 4, 3, 16, 16)
    for model_class in (LayerLockViTModel, LayerLockViTForPretraining, LayerLockViTForDepthEstimation):
        source = model_class(tiny_config)
        source.save_pretrained(tmp_path)
        encoder = load_encoder(tmp_path)
        assert type(encoder) is LayerLockViTModel and not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        assert torch.equal(encoder.tap(video, [5])[0], source.base_model.tap(video, [5])[0])
    longer = load_encoder(tmp_path, image_size=24, num_frames=6)
    assert (longer.config.image_size, longer.config.num_frames) == (24, 6)
    assert torch.equal(longer.tap(video, [5])[0], encoder.tap(video, [5])[0])
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        load_encoder(tmp_path, image_size=17)


def test_a_loaded_encoder_is_saved_with_a_readout(tmp_path):
    make_vjepa2().save_pretrained(tmp_path)
    write(tmp_path, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    encoder = load_encoder(tmp_path, num_frames=6)
    config = copy.deepcopy(encoder.config)
    config.update({"readout_depth": 1, "readout_hidden_size": 16, "readout_num_attention_heads": 2, "num_labels": 3})
    model = AutoModelForVideoClassification.from_config(config).eval()
    model.encoder.load_state_dict(encoder.state_dict())
    model.save_pretrained(tmp_path / "readout")
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "readout")
    video = torch.rand(2, 6, 3, 16, 16)
    assert torch.equal(loaded.encoder.tap(video, [1])[0], encoder.tap(video, [1])[0])
    assert torch.equal(loaded(video).logits, model(video).logits)
    processor = LayerLockVideoProcessor.from_config(loaded.config)
    assert processor([(video[0] * 255).byte()]).pixel_values_videos.shape == (1, 6, 3, 16, 16)


def test_readouts_of_other_encoders(tmp_path):
    config = TransformersEncoderConfig(
        encoder_config=transformers.Dinov2Config(**IMAGES),
        pixel_mean=[0.5] * 3,
        image_size=16,
        num_frames=2,
        readout_hidden_size=16,
        readout_num_attention_heads=2,
    )
    model = TransformersEncoderForVideoClassification(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    video = torch.rand(1, 2, 3, 16, 16)
    assert type(encoder) is TransformersEncoder and encoder.config.pixel_mean == [0.5] * 3
    assert torch.equal(encoder.tap(video, [2])[0], model.encoder.tap(video, [2])[0])


def test_random_weights(tmp_path):
    for source in (make_vjepa2(), LayerLockViTModel(LayerLockViTConfig.from_preset("tiny"))):
        source.save_pretrained(tmp_path)
        write(tmp_path, do_normalize=False)
        loaded = load_encoder(tmp_path)
        video = torch.rand(1, 4, 3, 64, 64)
        draws = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            draws.append(load_encoder(tmp_path, random_weights=True))
            assert not any(parameter.requires_grad for parameter in draws[-1].parameters())
        first, again, other = (draw.tap(video, [2])[0] for draw in draws)
        assert torch.equal(first, again) and not torch.allclose(first, other)
        assert not torch.allclose(first, loaded.tap(video, [2])[0])


def test_sizes_can_be_chosen(tmp_path):
    make_clip().save_pretrained(tmp_path)
    write(tmp_path, do_normalize=False)
    encoder = load_encoder(tmp_path, image_size=24, num_frames=3)
    assert (encoder.config.image_size, encoder.config.num_frames, encoder.dtype) == (24, 3, torch.float32)
    assert encoder.grid_size(torch.rand(1, 3, 3, 24, 24)) == (3, 3, 3)
    make_videomae().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot load .*as a clip.*24"):
        load_encoder(tmp_path, image_size=24)


def test_learned_positions_of_ours_fit_one_size(tiny_config, tmp_path):
    tiny_config.position_embedding = "learned"
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path)
    load_encoder(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"embeddings.positions.table must have the shape \(1, 128, 32\).*got \(1, 32, 32\).*leave image_size",
    ):
        load_encoder(tmp_path, image_size=32)


def test_incomplete_checkpoints_are_refused(tmp_path):
    transformers.Dinov2Model(transformers.Dinov2Config(**IMAGES)).save_pretrained(tmp_path)
    write(tmp_path, do_normalize=False)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "encoder.layer.1" in name)
    missing = {key: value for key, value in weights.items() if key != name}
    save_file(missing, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 arrays of the model, such as encoder.layer.1"):
        load_encoder(tmp_path)
    # What comes after the layers is not run
    norms = {key: value for key, value in weights.items() if not key.startswith("layernorm")}
    assert len(norms) < len(weights)
    save_file(norms, tmp_path / "model.safetensors", {"format": "pt"})
    load_encoder(tmp_path)


def test_what_is_no_encoder(tmp_path):
    with pytest.raises(ValueError, match="cannot load nobody/nothing as an encoder"):
        load_encoder("nobody/nothing")
    with pytest.raises(ValueError, match="cannot load .*config.json"):
        load_encoder(tmp_path)
    config = transformers.SwinConfig(
        image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2
    )
    transformers.SwinModel(config).save_pretrained(tmp_path)
    write(tmp_path, do_normalize=False)
    with pytest.raises(ValueError, match="swin.*[Hh]ierarchical"):
        load_encoder(tmp_path)
    transformers.BertModel(transformers.BertConfig(**ATTENTION, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image_size must be given, .* bert"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    make_clip().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot load"):
        load_encoder(tmp_path)


def test_without_a_processor_pixels_stay_as_they_are(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(transformers.utils.logging.get_logger("layerlock_hf"), "propagate", True)
    make_videomae().save_pretrained(tmp_path)
    config = load_encoder(tmp_path).config
    assert (config.pixel_mean, config.pixel_std) == ([0.0] * 3, [1.0] * 3) and "stay in [0, 1]" in caplog.text


def test_pixels_that_would_be_normalised_twice_are_refused(tmp_path):
    config = LayerLockViTConfig.from_preset("tiny", pixel_mean=[0.5] * 3, pixel_std=[0.2] * 3)
    LayerLockViTModel(config).save_pretrained(tmp_path)
    LayerLockVideoProcessor.from_config(config).save_pretrained(tmp_path)
    load_encoder(tmp_path)
    settings = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": True}))
    with pytest.raises(ValueError, match="do_normalize must be False .* the encoder normalises pixels itself"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="do_normalize must be False"):
        LayerLockVideoProcessor.from_config(config, do_normalize=True)
