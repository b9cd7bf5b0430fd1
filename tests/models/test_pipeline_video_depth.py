"""The depth of every frame, whatever the length of the video."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel, pipeline

from layerlock_hf import LayerLockVideoProcessor, LayerLockViTForDepthEstimation, VideoDepthEstimationPipeline
from layerlock_hf.data import read_clip
from layerlock_hf.data.procedural import write_procedural_dataset


NUM_FRAMES = 19
TASK = "video-depth-estimation"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A video of 19 frames of 48 x 48 pixels."""
    folder = tmp_path_factory.mktemp("videos")
    write_procedural_dataset(folder, 1, num_frames=NUM_FRAMES, image_size=48, progress=False)
    return str(next((folder / "videos").glob("*.mp4")))


@pytest.fixture
def frames(path):
    return read_clip(path, lambda available: list(range(available))).frames


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    LayerLockViTForDepthEstimation(tiny_config).save_pretrained(tmp_path)
    LayerLockVideoProcessor.from_config(tiny_config, size=18).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def estimate(checkpoint):
    """The pipeline. Its model is small, and takes clips of 4 frames of 16 x 16 pixels."""
    return pipeline(TASK, model=checkpoint, device="cpu")


def squeeze(frames):
    return torch.nn.functional.interpolate(frames, size=(16, 16), mode="bilinear", antialias=True).float() / 255


def test_depth_of_a_clip_is_what_the_model_says(estimate, checkpoint, frames):
    assert type(estimate) is VideoDepthEstimationPipeline
    model = LayerLockViTForDepthEstimation.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = model(squeeze(frames[:4])[None]).predicted_depth[0]
    depth = estimate(frames[:4], frame_stride=1)["predicted_depth"]
    assert (depth.shape, depth.dtype) == ((4, 16, 16), torch.float32)
    assert torch.equal(depth, expected)


def brightness(sizes):
    """A model for which the grey level is the depth; it notes how many clips come at once."""

    def forward(pixel_values_videos):
        sizes.append(len(pixel_values_videos))
        return SimpleNamespace(predicted_depth=pixel_values_videos.mean(dim=2))

    return forward


@pytest.mark.parametrize("frame_stride", [1, 2, 3])
@pytest.mark.parametrize("num_frames", [1, 4, 7, 8, 19])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_frame_has_its_own_depth(estimate, frames, monkeypatch, frame_stride, num_frames, batch_size):
    sizes = []
    monkeypatch.setattr(estimate.model, "forward", brightness(sizes))
    video = frames[:num_frames]
    depth = estimate(video, frame_stride=frame_stride, batch_size=batch_size)["predicted_depth"]
    assert torch.allclose(depth, squeeze(video).mean(dim=1), atol=1e-6)
    assert max(sizes) <= batch_size


def test_every_form_gives_the_same(estimate, path, frames, website):
    (website.root / "a.mp4").write_bytes(Path(path).read_bytes())
    expected = estimate(path)["predicted_depth"]
    assert len(expected) == NUM_FRAMES
    forms = [Path(path), Path(path).read_bytes(), f"{website.url}/a.mp4", frames, frames.permute(0, 2, 3, 1).numpy()]
    for video in forms:
        assert torch.equal(estimate(video)["predicted_depth"], expected)
    many = estimate([*forms, frames[:5]], batch_size=2)
    assert [len(one["predicted_depth"]) for one in many] == [NUM_FRAMES] * len(forms) + [5]
    assert torch.allclose(many[0]["predicted_depth"], expected, atol=1e-6)
    stream = estimate(video for video in [path, path])
    assert torch.equal(next(iter(stream))["predicted_depth"], expected)


def test_decoders_are_read_window_by_window(estimate, path):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    depth = estimate(decoders.VideoDecoder(path))["predicted_depth"]
    assert torch.equal(depth, estimate(path)["predicted_depth"])


def test_depth_has_the_size_of_the_video_on_request(estimate):
    video = torch.randint(256, (6, 3, 20, 34), dtype=torch.uint8)
    depth = estimate(video, resize_to_video=True)["predicted_depth"]
    assert depth.shape == (6, 20, 34)
    small = estimate(video)["predicted_depth"]
    assert (depth.mean() - small.mean()).abs() < 0.05


@pytest.mark.parametrize(
    ("video", "settings", "message"),
    [
        ("missing.mp4", {}, "missing.mp4: no such file"),
        (b"no video" * 100, {}, "800 bytes: text, no video"),
        ([], {}, "videos is empty"),
        (7, {}, "int is no video"),
        (np.zeros((3, 16, 16), np.uint8), {}, "ndarray of shape .* is no video"),
        (np.zeros((0, 3, 16, 16), np.uint8), {}, "no frames"),
        (np.zeros((4, 3, 16, 16), np.uint8), {"frame_stride": 0}, "frame_stride is 0"),
        (np.zeros((4, 3, 16, 16), np.uint8), {"batch_size": 1.5}, "batch_size is 1.5"),
    ],
)
def test_what_cannot_be_done_is_named(estimate, video, settings, message):
    with pytest.raises(ValueError, match=message):
        estimate(video, **settings)


def test_a_model_of_images_is_refused(estimate):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    with pytest.raises(ValueError, match="ViTModel has no config.num_frames"):
        VideoDepthEstimationPipeline(ViTModel(config), video_processor=estimate.video_processor, device="cpu")
