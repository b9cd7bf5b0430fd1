"""The depth of every frame, whatever the length of the video."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForVideoClassification,
    VideoMAEConfig,
    ViTConfig,
    ViTModel,
    pipeline,
)

from layerlock_hf import (
    LayerLockVideoProcessor,
    LayerLockViTForDepthEstimation,
    TransformersEncoderConfig,
    VideoDepthEstimationPipeline,
)
from layerlock_hf.data import center_crop, read_clip
from layerlock_hf.data.procedural import FRAME_RATE, write_procedural_dataset


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


def write_wide(path, picture, pixel_aspect):
    """A video of 5 frames that show a grey picture (H, W)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.height, stream.width = picture.shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect, 1)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode(None))
    return str(path)


def brightness(sizes):
    """A model for which the grey level is the depth; it notes how many clips come at once."""

    def forward(pixel_values_videos):
        sizes.append(len(pixel_values_videos))
        return SimpleNamespace(predicted_depth=pixel_values_videos.mean(dim=2))

    return forward


def seen(frames):
    """What the model sees of the square in the middle, (T, 3, 16, 16)"""
    return center_crop(frames, 16, 18 / 16).float() / 255


def test_depth_of_a_clip_is_what_the_model_says(estimate, checkpoint, frames):
    assert type(estimate) is VideoDepthEstimationPipeline
    model = LayerLockViTForDepthEstimation.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = model(seen(frames[:4])[None]).predicted_depth[0]
    found = estimate(frames[:4], frame_stride=1, resize_to_video=False)
    depth = found["predicted_depth"]
    assert (depth.shape, depth.dtype) == ((4, 16, 16), torch.float32)
    assert torch.equal(depth, expected)
    assert found["box"] == (2, 2, 43, 43)


@pytest.mark.parametrize("frame_stride", [1, 2, 3])
@pytest.mark.parametrize("num_frames", [1, 4, 7, 8, 19])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_frame_has_its_own_depth(estimate, frames, monkeypatch, frame_stride, num_frames, batch_size):
    sizes = []
    monkeypatch.setattr(estimate.model, "forward", brightness(sizes))
    video = frames[:num_frames]
    settings = {"frame_stride": frame_stride, "batch_size": batch_size, "resize_to_video": False}
    depth = estimate(video, **settings)["predicted_depth"]
    assert torch.allclose(depth, seen(video).mean(dim=1), atol=1e-6)
    assert max(sizes) <= batch_size
    if frame_stride == 1:  # clips of several windows go together
        assert len(sizes) == -(-num_frames // (4 * batch_size))


@pytest.mark.parametrize("pixel_aspect", [1, 2])
def test_depth_lies_where_the_frames_show_it(checkpoint, tmp_path, monkeypatch, pixel_aspect):
    """Of a smooth picture, whose brightness is the depth."""
    across, down = torch.meshgrid(torch.arange(96), torch.arange(160), indexing="ij")
    picture = ((across + down) * 0.9).to(torch.uint8)
    path = write_wide(tmp_path / "a.mp4", picture[:, ::pixel_aspect].numpy(), pixel_aspect)
    estimate = pipeline(TASK, model=checkpoint, device="cpu")
    monkeypatch.setattr(estimate.model, "forward", brightness([]))
    found = estimate(path)
    depth, (top, left, rows, columns) = found["predicted_depth"], found["box"]
    assert depth.shape == (5, 96, 160 // pixel_aspect)
    # 85 = 96 * 16 / 18 of what a player shows, in the middle
    assert (top, left, rows, columns) == (6, 38 // pixel_aspect, 85, round(85 / pixel_aspect))
    is_seen = torch.zeros(96, 160 // pixel_aspect, dtype=torch.bool)
    is_seen[top : top + rows, left : left + columns] = True
    assert torch.equal(~depth.isnan(), is_seen.expand(5, -1, -1))
    inner = (slice(None), slice(top + 6, top + rows - 6), slice(left + 6, left + columns - 6))
    shown = read_clip(path, lambda available: list(range(available))).frames.float().mean(dim=1) / 255
    assert (depth[inner] - shown[inner]).abs().max() < 0.02


def test_whole_frames_are_seen_if_the_processor_says_so(checkpoint, frames, monkeypatch):
    size = {"height": 16, "width": 16}
    LayerLockVideoProcessor(4, size=size, do_center_crop=False).save_pretrained(checkpoint)
    estimate = pipeline(TASK, model=checkpoint, device="cpu")
    monkeypatch.setattr(estimate.model, "forward", brightness([]))
    video = frames[..., :30]
    found = estimate(video, resize_to_video=False)
    squeezed = torch.nn.functional.interpolate(video, size=(16, 16), mode="bilinear", antialias=True).float() / 255
    assert torch.allclose(found["predicted_depth"], squeezed.mean(dim=1), atol=1e-6)
    assert found["box"] == (0, 0, 48, 30)
    assert estimate(video)["predicted_depth"].isfinite().all()


@pytest.mark.parametrize(("share", "frame_stride"), [(None, 2), (1 / 2, 4), (2, 1)])
def test_the_pace_is_that_of_the_training(checkpoint, path, frames, share, frame_stride):
    """Of a model that was trained on half the frame rate of the video, or twice as much."""
    frame_rate = share and FRAME_RATE * share
    LayerLockVideoProcessor(4, size=18, crop_size=16, frame_rate=frame_rate).save_pretrained(checkpoint)
    estimate = pipeline(TASK, model=checkpoint, device="cpu")
    expected = estimate(frames, frame_stride=frame_stride)["predicted_depth"]
    assert torch.allclose(estimate(path)["predicted_depth"], expected, rtol=0, atol=0, equal_nan=True)
    for other in {1, 2, 4} - {frame_stride}:
        depth = estimate(path, frame_stride=other)["predicted_depth"]
        assert not torch.allclose(depth, expected, equal_nan=True)


def test_floats_are_not_divided_by_255(estimate, frames):
    expected = estimate(frames)["predicted_depth"]
    depth = estimate(frames.float() / 255)["predicted_depth"]
    # uint8 is rounded once it is resized
    assert torch.allclose(depth, expected, atol=5e-3, equal_nan=True)


def test_every_form_gives_the_same(estimate, path, frames, website):
    (website.root / "a.mp4").write_bytes(Path(path).read_bytes())

    def seen_depth(video, **settings):
        return estimate(video, resize_to_video=False, **settings)

    expected = seen_depth(path)["predicted_depth"]
    assert len(expected) == NUM_FRAMES
    forms = [Path(path), Path(path).read_bytes(), f"{website.url}/a.mp4", frames, frames.permute(0, 2, 3, 1).numpy()]
    for video in forms:
        assert torch.equal(seen_depth(video)["predicted_depth"], expected)
    many = seen_depth([*forms, frames[:5]], batch_size=2)
    assert [len(one["predicted_depth"]) for one in many] == [NUM_FRAMES] * len(forms) + [5]
    assert torch.allclose(many[0]["predicted_depth"], expected, atol=1e-6)
    stream = seen_depth(video for video in [path, path])
    assert torch.equal(next(iter(stream))["predicted_depth"], expected)


def test_decoders_are_read_window_by_window(estimate, path):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    depth = estimate(decoders.VideoDecoder(path))["predicted_depth"]
    assert torch.allclose(depth, estimate(path)["predicted_depth"], atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("video", "settings", "message"),
    [
        ("missing.mp4", {}, "missing.mp4: no such file"),
        (b"no video" * 100, {}, "800 bytes: text, no video"),
        ([], {}, "videos must hold at least one video, got none"),
        (7, {}, "a video must be a path, .* got int"),
        (np.zeros((3, 16, 16), np.uint8), {}, "a video must be a path, .* got ndarray of shape"),
        (np.zeros((0, 3, 16, 16), np.uint8), {}, "a video must have at least one frame"),
        (
            np.zeros((4, 3, 16, 16), np.uint8),
            {"frame_stride": 0},
            "frame_stride must be an integer of at least 1, got 0",
        ),
        (
            np.zeros((4, 3, 16, 16), np.uint8),
            {"batch_size": 1.5},
            "batch_size must be an integer of at least 1, got 1.5",
        ),
    ],
)
def test_what_cannot_be_done_is_named(estimate, video, settings, message):
    with pytest.raises(ValueError, match=message):
        estimate(video, **settings)


def test_a_model_without_what_it_takes_is_refused(estimate):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    with pytest.raises(ValueError, match="model must have config.num_frames, got a ViTModel without"):
        VideoDepthEstimationPipeline(ViTModel(config), video_processor=estimate.video_processor, device="cpu")
    for processor, found in ((None, "none that loads"), (SimpleNamespace(), "a SimpleNamespace")):
        with pytest.raises(
            ValueError, match=f"processor must be a LayerLockVideoProcessor, got {found}: save the one"
        ):
            VideoDepthEstimationPipeline(estimate.model, video_processor=processor, device="cpu")


@pytest.fixture(params=["layerlock", "videomae"])
def config(request, tiny_config):
    """Of our own encoder and of a foreign one, for clips of 4 frames of 16 x 16 pixels."""
    if request.param == "layerlock":
        return tiny_config
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = VideoMAEConfig(image_size=16, patch_size=4, num_frames=4, tubelet_size=2, **sizes)
    return TransformersEncoderConfig(
        encoder_config=encoder,
        num_frames=4,
        image_size=16,
        readout_hidden_size=32,
        readout_num_attention_heads=2,
        pixel_mean=[0.5] * 3,
        pixel_std=[0.25] * 3,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_pipelines_of_any_encoder_dtype_and_device(config, path, frames, tmp_path, dtype, device):
    processor = LayerLockVideoProcessor.from_config(config, size=18)
    processor.save_pretrained(tmp_path)
    tolerance = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 and device == "cpu" else 0.03}

    AutoModelForDepthEstimation.from_config(config).save_pretrained(tmp_path)
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path).eval()
    estimate = pipeline(TASK, model=str(tmp_path), dtype=dtype, device=device)
    assert estimate.model.dtype == dtype and estimate.model.device.type == device
    with torch.no_grad():
        expected = model(seen(frames[:8:2])[None]).predicted_depth[0]
    depth = estimate(path, resize_to_video=False, batch_size=3)["predicted_depth"]
    assert (depth.dtype, depth.device.type, len(depth)) == (torch.float32, "cpu", NUM_FRAMES)
    assert torch.allclose(depth[:8:2], expected, **tolerance)

    config.num_labels = 3
    AutoModelForVideoClassification.from_config(config).save_pretrained(tmp_path)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path).eval()
    classify = pipeline("video-classification", model=str(tmp_path), dtype=dtype, device=device)
    assert classify.model.dtype == dtype
    with torch.no_grad():
        expected = model(**processor(path)).logits.softmax(-1)[0]
    scores = {row["label"]: row["score"] for row in classify(path)}
    assert torch.allclose(torch.tensor([scores[f"LABEL_{index}"] for index in range(3)]), expected, **tolerance)
