"""Encoders as people have them, each from its folder to vectors that are those of the model itself.

Models of others are made as Transformers saves them, tiny and random, with the processor that they are published with.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from original_4ds import checkpoint
from transformers import AutoModel

import layerlock_hf
from layerlock_hf.cli import convert
from layerlock_hf.data import read_clip
from layerlock_hf.data.transforms import center_crop, resize
from layerlock_hf.embedding import read_shards


SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "initializer_range": 0.2}
FRAMES = {**SIZES, "image_size": 16, "patch_size": 8, "intermediate_size": 32}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
CROPPED = {"do_center_crop": True, "size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
SQUEEZED = {"size": {"height": 16, "width": 16}}


def videomae():
    return transformers.VideoMAEModel(transformers.VideoMAEConfig(**FRAMES, num_frames=4, tubelet_size=2))


def vjepa2():
    predictor = {"pred_hidden_size": 16, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    clips = {"crop_size": 16, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2}
    return transformers.VJEPA2Model(transformers.VJEPA2Config(**SIZES, **predictor, **clips))


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**FRAMES))


def clip():
    text = {**SIZES, "intermediate_size": 32, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=FRAMES))


def siglip():
    text = {**SIZES, "intermediate_size": 32, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=FRAMES))


def of_videos(model, pixels):
    """Mean of the tokens after the first layer, of clips (1, T, C, S, S)."""
    return model(pixel_values_videos=pixels, output_hidden_states=True).hidden_states[1].mean(1)


def of_clips(model, pixels):
    return model(pixel_values=pixels, output_hidden_states=True).hidden_states[1].mean(1)


def of_frames(num_extra_tokens):
    """Of models of images: mean over frames and patches, without the tokens that are none."""

    def mean(model, pixels):
        model = getattr(model, "vision_model", model)
        states = model(pixel_values=pixels[0], output_hidden_states=True).hidden_states[1]
        return states[:, num_extra_tokens:].mean((0, 1))[None]

    return mean


# How it is made, the settings of its processor, and its features of a clip
MODELS = {
    "videomae": (videomae, CROPPED, of_clips),
    "vjepa2": (vjepa2, CROPPED, of_videos),
    "dinov2": (dinov2, CROPPED, of_frames(1)),
    "clip": (clip, CROPPED, of_frames(1)),
    "siglip": (siglip, SQUEEZED, of_frames(0)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_others(kind, videos, tmp_path):
    make, processor, features_of = MODELS[kind]
    model = make().eval()
    model.save_pretrained(tmp_path / "model")
    settings = {"do_normalize": True, "do_rescale": True, "image_mean": MEAN, "image_std": STD, **processor}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    rows = embed_and_find(tmp_path / "model", videos, tmp_path / "out", num_frames=4, depths=[1])
    for row, start in enumerate(rows["first_frame"].tolist()):
        frames = read_clip(rows["video"][row], lambda _, start=start: list(range(start, start + 4))).frames
        shown = resize(frames, 16) if processor is SQUEEZED else center_crop(frames, 16, 1.25)
        pixels = (shown.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.no_grad():
            expected = features_of(model, pixels[None])[0]
        np.testing.assert_allclose(rows["depth_1"][row], expected.numpy(), atol=1e-5)


def embed_and_find(model, videos, out, **settings):
    """What is in the folder once a video is embedded, which finds itself."""
    video = str(videos / "v5.mp4")
    layerlock_hf.embed(video, out, str(model), window="4f", stride="8f", batch_size=3, **settings)
    found = layerlock_hf.search(out, video, top=2)
    assert found.hits[0].score == pytest.approx(1, abs=1e-5) and found.hits[0].video == video
    (rows,) = read_shards(out)
    vectors = rows[f"depth_{found.depth}"]
    assert len(np.unique(vectors, axis=0)) == len(vectors) > 4
    return rows


def test_a_converted_checkpoint_of_4ds(videos, tmp_path):
    arrays = checkpoint(frames=6, side=24, readout=None)
    np.savez(tmp_path / "weights.npz", **{name: array.numpy() for name, array in arrays.items()})
    convert.main(["--checkpoint", str(tmp_path / "weights.npz"), "--output_dir", str(tmp_path / "model")])
    layerlock_hf.embed(str(videos / "v5.mp4"), tmp_path / "out", str(tmp_path / "model"), window="6f", depths=[2])
    (rows,) = read_shards(tmp_path / "out")
    assert rows["depth_2"].shape == (7, 30)
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    frames = read_clip(rows["video"][2], lambda _: list(range(12, 18))).frames
    with torch.no_grad():
        (tokens,) = model.tap(center_crop(frames, 24)[None].float() / 255, [2])
    np.testing.assert_allclose(rows["depth_2"][2], tokens.mean(1)[0].numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_run_and_its_checkpoint(videos, tiny_sizes, tmp_path):
    """The folder of the run is its last step, and so is the checkpoint of that."""
    good = tmp_path / "videos"
    good.mkdir()
    for number in range(4):
        (good / f"v{number}.mp4").symlink_to(videos / f"v{number}.mp4")
    settings = {**tiny_sizes, "mask_ratio": 0.5, "max_steps": 2, "save_steps": 1, "global_batch_size": 2}
    settings |= {"per_device_train_batch_size": 2, "frame_stride": 1, "dataloader_num_workers": 0, "report_to": "none"}
    layerlock_hf.pretrain("demo-mae", good, tmp_path / "run", **settings)
    made = {
        name: embed_and_find(tmp_path / "run" / name, videos, tmp_path / f"out{number}")["depth_6"]
        for number, name in enumerate(("", "checkpoint-2", "checkpoint-1"))
    }
    np.testing.assert_array_equal(made[""], made["checkpoint-2"])
    assert not np.array_equal(made[""], made["checkpoint-1"])
