import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from transformers import pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

import layerlock_hf.models
from layerlock_hf import LayerLockVideoProcessor, LayerLockViTForVideoClassification
from layerlock_hf.data import center_crop, read_clip
from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.models import LayerLockViTModel, video_reading_torchcodec


NUM_FRAMES = 20


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two procedural videos of 20 frames of 48 x 48 pixels, and one second of sound."""
    folder = tmp_path_factory.mktemp("videos")
    write_procedural_dataset(folder, 2, seed=0, num_frames=NUM_FRAMES, image_size=48)
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return folder


@pytest.fixture
def paths(folder):
    return [str(path) for path in sorted((folder / "videos").glob("*.mp4"))]


@pytest.fixture
def without_torchcodec(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    video_reading_torchcodec.torchcodec_decoder.cache_clear()
    yield
    video_reading_torchcodec.torchcodec_decoder.cache_clear()


def hide_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "av.filter", None)


@pytest.fixture
def without_pyav(monkeypatch):
    hide_pyav(monkeypatch)


@pytest.fixture
def processor(tiny_config):
    return LayerLockVideoProcessor.from_config(tiny_config)


def pixels(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def torchcodec_decoder(path, **settings):
    return pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError)).VideoDecoder(
        path, **settings
    )


@pytest.mark.parametrize("height, width", [(48, 64), (90, 40), (33, 57), (19, 23), (19, 40)])
@pytest.mark.parametrize("resize_factor", [1.0, 1.15, 1.3])
@pytest.mark.parametrize("ignores_aspect", [False, True])
@pytest.mark.parametrize("pixel_aspect", [1.0, 0.8, 2.5])
def test_clips_are_those_of_pretraining_and_readouts(
    tiny_config, height, width, resize_factor, ignores_aspect, pixel_aspect
):
    size = round(16 * resize_factor, 6)
    size = {"height": size, "width": size} if ignores_aspect else size
    processor = LayerLockVideoProcessor.from_config(tiny_config, size=size)
    video = pixels(4, 3, height, width)
    expected = center_crop(video, 16, resize_factor, pixel_aspect, ignores_aspect).float() / 255
    assert torch.equal(processor(video, pixel_aspect=pixel_aspect).pixel_values_videos[0], expected)
    # The shown box is what is seen, and nothing else
    top, left, rows, columns = processor.shown_box(height, width, pixel_aspect)
    hidden = torch.ones(height, width, dtype=torch.bool)
    hidden[top : top + rows, left : left + columns] = False
    changed = torch.where(hidden, 255 - video, video)
    assert torch.equal(processor(changed, pixel_aspect=pixel_aspect).pixel_values_videos[0], expected)


@pytest.mark.parametrize("height, width", [(48, 64), (33, 57), (10, 13)])
def test_frames_without_crop_keep_their_proportions(tiny_config, height, width):
    processor = LayerLockVideoProcessor.from_config(tiny_config, do_center_crop=False)
    video, size = pixels(4, 3, height, width), (16, 16 * width // height)
    expected = F.interpolate(video, size=size, mode="bilinear", antialias=True)
    assert torch.equal(processor(video).pixel_values_videos[0], expected.float() / 255)
    assert processor.shown_box(height, width) == (0, 0, height, width)
    cropped = processor(video, do_resize=False, do_center_crop=True, crop_size=8).pixel_values_videos[0]
    top, left = round((height - 8) / 2), round((width - 8) / 2)
    assert torch.equal(cropped, video[..., top : top + 8, left : left + 8].float() / 255)


def test_pace_of_other_frame_rates(processor):
    processor.frame_stride = 2
    assert [processor.stride_at(rate) for rate in (None, 10, 60.0)] == [2, 2, 2]
    processor.frame_rate = 30
    assert [processor.stride_at(rate) for rate in (None, 30, 29.97, 60.0, 14, 1)] == [2, 2, 2, 4, 1, 1]


def test_every_form_of_frames_gives_the_same_clip(processor):
    video = pixels(4, 3, 20, 24)
    channels_last = video.permute(0, 2, 3, 1)
    expected = processor(video).pixel_values_videos
    assert expected.shape == (1, 4, 3, 16, 16)
    assert expected.dtype == torch.float32
    assert 0 <= expected.min() and expected.max() <= 1
    read_only = channels_last.numpy().copy()
    read_only.flags.writeable = False
    reversed_twice = np.ascontiguousarray(read_only[::-1])[::-1]
    for same in (
        channels_last,
        video.numpy(),
        read_only,
        reversed_twice,
        list(video),
        list(channels_last),
        tuple(channels_last.numpy()),
        list(read_only),
        [np.ascontiguousarray(frame[:, ::-1])[:, ::-1] for frame in read_only],
        [PIL.Image.fromarray(frame.numpy()) for frame in channels_last],
        [video],
        [channels_last.numpy()],
        [[PIL.Image.fromarray(frame.numpy()) for frame in channels_last]],
        video[None],
        channels_last.numpy()[None],
    ):
        assert torch.equal(processor(same).pixel_values_videos, expected)


def test_a_batch_may_mix_sizes_and_forms(processor, paths):
    videos = [pixels(4, 3, 20, 24), pixels(4, 40, 30, 3).numpy(), list(pixels(4, 3, 16, 16)), paths[0]]
    batch = processor(videos).pixel_values_videos
    assert batch.shape == (4, 4, 3, 16, 16)
    for clip, video in zip(batch, videos, strict=True):
        assert torch.equal(processor(video).pixel_values_videos[0], clip)
    assert processor(pixels(2, 4, 3, 20, 20)).pixel_values_videos.shape == (2, 4, 3, 16, 16)
    assert isinstance(processor(videos, return_tensors="np").pixel_values_videos, np.ndarray)


def test_grey_frames_become_rgb(processor):
    grey = pixels(4, 1, 20, 24)
    assert torch.equal(
        processor(grey)["pixel_values_videos"], processor(grey.expand(-1, 3, -1, -1)).pixel_values_videos
    )
    images = [PIL.Image.fromarray(frame[0].numpy()) for frame in grey]
    assert torch.equal(processor(images).pixel_values_videos, processor(grey).pixel_values_videos)


def test_floats_and_normalisation(processor):
    video = pixels(4, 3, 16, 16)
    clip = processor(video).pixel_values_videos
    assert torch.equal(processor(video / 255, do_rescale=False).pixel_values_videos, clip)
    assert processor(torch.rand(4, 3, 20, 20).half(), do_rescale=False).pixel_values_videos.dtype == torch.float32
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    expected = (clip - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    normalized = processor(video, do_normalize=True, image_mean=mean, image_std=std).pixel_values_videos
    assert torch.equal(normalized, expected)
    assert processor.do_normalize is False


def test_files_are_sampled_in_the_middle(processor, paths):
    frames = read_clip(paths[0], lambda available: list(range(available))).frames
    # Four frames with stride 2 span 7 of the 20
    assert processor.sample_frames(NUM_FRAMES) == [6, 8, 10, 12]
    clip = processor(paths[0]).pixel_values_videos
    assert torch.equal(clip, processor(frames[[6, 8, 10, 12]]).pixel_values_videos)
    assert torch.equal(processor(Path(paths[0])).pixel_values_videos, clip)
    assert torch.equal(processor(Path(paths[0]).read_bytes()).pixel_values_videos, clip)
    assert torch.equal(processor(frames, do_sample_frames=True).pixel_values_videos, clip)
    assert torch.equal(processor(list(frames), num_frames=4).pixel_values_videos, clip)
    assert processor(paths, num_frames=8, frame_stride=1).pixel_values_videos.shape == (2, 8, 3, 16, 16)
    assert processor(paths, do_sample_frames=False).pixel_values_videos.shape == (2, NUM_FRAMES, 3, 16, 16)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_decoders_are_read_as_files_are(processor, paths, order):
    decoders = [torchcodec_decoder(path, dimension_order=order) for path in paths]
    assert torch.equal(processor(decoders).pixel_values_videos, processor(paths).pixel_values_videos)
    assert torch.equal(processor(decoders[0]).pixel_values_videos, processor(paths[:1]).pixel_values_videos)


def test_short_videos_repeat_their_last_frame(processor, paths):
    clip = processor(paths[0], num_frames=16, frame_stride=2).pixel_values_videos[0]
    assert len(clip) == 16
    frames = read_clip(paths[0], lambda available: list(range(0, available, 2))).frames
    assert torch.equal(clip[:10], processor(frames).pixel_values_videos[0])
    assert all(torch.equal(frame, clip[9]) for frame in clip[10:])


def test_torchcodec_takes_over_with_the_same_frames(processor, paths, monkeypatch, caplog):
    torchcodec_decoder(paths[0])  # or skip
    expected = [read_clip(path, processor.sample_frames).frames for path in paths]
    hide_pyav(monkeypatch)
    with caplog.at_level(logging.WARNING):
        clips = processor(paths).pixel_values_videos
    assert [record.getMessage().count("read by torchcodec alone") for record in caplog.records] == [1, 1]
    assert torch.equal(clips, processor(expected).pixel_values_videos)


def test_without_decoders_both_are_named(processor, paths, without_pyav, without_torchcodec):
    with pytest.raises(ImportError, match="pip install torchcodec, or pip install av"):
        processor(paths)


def test_clips_show_what_a_player_shows_of_pixels_that_are_not_square(processor, tmp_path):
    path = str(tmp_path / "a.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 96, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 1)
        image = pixels(96, 12, 3).repeat_interleave(4, dim=1).numpy()
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    clip = read_clip(path, processor.sample_frames)
    assert clip.pixel_aspect == 4
    shown = center_crop(clip.frames, 16, pixel_aspect=4.0).float() / 255
    assert torch.equal(processor(path).pixel_values_videos[0], shown)
    assert torch.equal(processor(torchcodec_decoder(path)).pixel_values_videos[0], shown)
    assert torch.equal(processor(clip.frames, pixel_aspect=4.0).pixel_values_videos[0], shown)


def test_whole_frames_are_squeezed(processor, tiny_config, paths):
    video = pixels(4, 3, 48, 20)
    squeezing = LayerLockVideoProcessor.from_config(tiny_config, size={"height": 16, "width": 16})
    clip = squeezing(video).pixel_values_videos[0]
    assert torch.equal(clip, F.interpolate(video, size=(16, 16), mode="bilinear", antialias=True).float() / 255)
    assert torch.equal(squeezing(video, pixel_aspect=3.0).pixel_values_videos[0], clip)
    assert LayerLockVideoProcessor(size={"height": 8, "width": 12}).crop_size == {"height": 8, "width": 12}


def test_damaged_files_give_what_decodes(processor, tmp_path, caplog):
    write_procedural_dataset(tmp_path, 1, seed=0, num_frames=60, image_size=48)
    path = next((tmp_path / "videos").glob("*.mp4"))
    whole = path.read_bytes()
    start = whole.index(b"mdat") + 4
    half = (int.from_bytes(whole[start - 8 : start - 4], "big") - 8) // 2
    path.write_bytes(whole[: start + half] + bytes(half) + whole[start + 2 * half :])
    clip = read_clip(str(path), lambda available: list(range(available)))
    assert 10 < clip.num_frames < 60
    with caplog.at_level(logging.WARNING):
        frames = processor(str(path), do_sample_frames=False).pixel_values_videos
    is_new = torch.cat([torch.tensor([True]), clip.timestamps.diff() > 0])  # a missing frame is made up for
    assert torch.equal(frames, processor(clip.frames[is_new]).pixel_values_videos)
    assert clip.note in caplog.text
    assert processor(str(path)).pixel_values_videos.shape == (1, 4, 3, 16, 16)


@pytest.mark.parametrize(
    "videos, message",
    [
        ([], "videos must hold at least one video, got none"),
        (torch.zeros(0, 4, 3, 16, 16, dtype=torch.uint8), "videos must hold at least one video, got none"),
        ([[]], "video 0: a list of frames must be PIL images, or tensors or arrays"),
        (torch.zeros(0, 3, 16, 16, dtype=torch.uint8), "a video must have at least one frame"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), "video 0: a video must be a path, .* got Tensor of shape"),
        (np.zeros((1, 1, 4, 3, 16, 16), np.uint8), "a video must be a path, .* got ndarray of shape"),
        (7, "video 0: a video must be a path, .* got int"),
        ([torch.zeros(4, 3, 16, 16, dtype=torch.uint8), None], "video 1: a video must be a path, .* got NoneType"),
        (torch.zeros(4, 2, 16, 16, dtype=torch.uint8), "frames must have 1 or 3 channels, got"),
        (torch.zeros(4, 3, 16, 3, dtype=torch.uint8), "pass input_data_format"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.int64), "frames must be uint8, .* got torch.int64"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.bool), "frames must be uint8, .* got torch.bool"),
        (torch.zeros(4, 3, 16, 16), "frames must be uint8 .* got torch.float32: pass do_rescale=False"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 16, 17)], "frames of a video must have one shape"),
        (
            [torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(5, 3, 16, 16, dtype=torch.uint8)],
            "clips must have one shape .* to make a batch, got",
        ),
        ("missing.mp4", "video 0: missing.mp4: no such file"),
        (["a:b.mp4"], "no such file"),
        (b"", "video 0: 0 bytes"),
        (b"no video" * 100, "video 0: 800 bytes"),
    ],
)
def test_what_is_no_video_is_named(processor, videos, message):
    with pytest.raises(ValueError, match=message):
        processor(videos)


def test_sound_is_no_video(processor, folder, paths, without_torchcodec):
    with pytest.raises(ValueError, match="video 1: .*sound.wav: no video stream"):
        processor([paths[0], str(folder / "sound.wav")])


def test_sound_is_no_video_for_torchcodec_either(processor, folder):
    with pytest.raises(ValueError, match="sound.wav: no video stream"):
        processor(str(folder / "sound.wav"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_frames": 0}, "num_frames must be an integer of at least 1, got 0"),
        ({"num_frames": None}, "num_frames must be an integer of at least 1, got None"),
        ({"frame_stride": -1}, "frame_stride must be an integer of at least 1, got -1"),
        ({"frame_stride": 1.5}, "frame_stride must be an integer of at least 1, got 1.5"),
        ({"size": 0}, "size must be pixels, .* got 0"),
        ({"size": 0.5}, "size must be pixels, .* got 0.5"),
        ({"size": float("nan")}, "size must be pixels, .* got nan"),
        ({"crop_size": 15.5}, "crop_size must be whole pixels, got .*15.5"),
        ({"size": [16]}, "size must be pixels, or a dictionary with shortest_edge or height and width"),
        ({"size": {"height": 16}}, "size must be pixels, or a dictionary with shortest_edge or height and width"),
        ({"frame_rate": 0}, "frame_rate must be above 0 .* frames per second, or None, got 0"),
        ({"frame_rate": "8"}, "frame_rate must be above 0 .* got '8'"),
        ({"frame_rate": float("nan")}, "frame_rate must be above 0 .* got nan"),
        ({"crop_size": {"shortest_edge": 16}}, "crop_size must be pixels, or a dictionary with height and width"),
        ({"crop_size": 17}, "crop_size must be at most the size of the frame, 16x20 pixels, got 17x17"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": 0.5}, "image_mean must be one value for each of the 3 colours, got 0.5"),
        ({"image_std": (1, 1, 0)}, "image_std must be above 0, got"),
        ({"input_data_format": "last"}, "input_data_format must be one of channels_first, .* got 'last'"),
        ({"fps": 2}, "unknown setting.*fps: choose among num_frames"),
        ({"num_frames": 2, "do_sample_frames": False}, "but do_sample_frames is False: leave them out"),
    ],
)
def test_impossible_settings_are_named(processor, settings, message):
    with pytest.raises(ValueError, match=message):
        processor(pixels(4, 3, 16, 20), **settings)


def test_input_data_format_settles_ambiguity(processor):
    video = pixels(4, 3, 16, 3)
    clip = processor(video, input_data_format="channels_last", size=16).pixel_values_videos
    assert torch.equal(clip, processor(video.permute(0, 3, 1, 2).contiguous()).pixel_values_videos)


def test_fractions_of_pixels_of_the_size(tiny_config, tmp_path):
    LayerLockVideoProcessor.from_config(tiny_config, size=18.4).save_pretrained(tmp_path)
    assert LayerLockVideoProcessor.from_pretrained(tmp_path).size == {"shortest_edge": 18.4}
    assert LayerLockVideoProcessor(size=18.4).crop_size == {"height": 18, "width": 18}
    assert LayerLockVideoProcessor(size={"height": 16.0, "width": 9.5}).crop_size == {"height": 16, "width": 9}


def test_round_trip(processor, tiny_config, tmp_path, paths):
    changed = LayerLockVideoProcessor.from_config(
        tiny_config, size=18, frame_stride=3, frame_rate=7.5, do_normalize=True, image_std=(1.0, 2.0, 3.0)
    )
    changed.save_pretrained(tmp_path)
    for cls in (LayerLockVideoProcessor, AutoVideoProcessor):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is LayerLockVideoProcessor
        assert loaded.to_dict() == changed.to_dict()
        assert torch.equal(loaded(paths).pixel_values_videos, changed(paths).pixel_values_videos)
        assert cls.from_pretrained(tmp_path, num_frames=8).num_frames == 8
    assert set(loaded.to_dict()) - set(processor.to_dict()) == {"frame_rate"}  # None is left out


def test_auto_class_knows_the_processor_of_a_config(tiny_config, processor, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    file.write_text(file.read_text().replace('"video_processor_type"', '"processor_class"'))
    assert isinstance(AutoVideoProcessor.from_pretrained(tmp_path), LayerLockVideoProcessor)


def test_clips_fit_the_model(tiny_config, processor, paths):
    model = LayerLockViTModel(tiny_config).eval()
    assert model(**processor(paths)).last_hidden_state.shape == (2, 32, 32)


@pytest.fixture
def checkpoint(tiny_config, processor, tmp_path):
    """A folder of a classifier of three classes, one of which has a name."""
    tiny_config.id2label = {0: "LABEL_0", 1: "hug", 2: "LABEL_2"}
    LayerLockViTForVideoClassification(tiny_config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return str(tmp_path)


def test_pipeline_classifies_files(checkpoint, processor, paths, website):
    classify = pipeline("video-classification", model=checkpoint, device="cpu")
    assert type(classify.video_processor) is LayerLockVideoProcessor
    with torch.no_grad():
        expected = classify.model(**processor(paths)).logits.softmax(-1)
    for one, scores in zip(classify(paths), expected, strict=True):
        assert {row["label"] for row in one} == {"LABEL_0", "hug", "LABEL_2"}
        found = torch.tensor([row["score"] for row in one])
        assert torch.allclose(found, scores.sort(descending=True).values, atol=1e-6)
    (website.root / "a.mp4").write_bytes(Path(paths[0]).read_bytes())
    best = classify(paths[0], top_k=1)
    assert len(best) == 1
    assert classify(f"{website.url}/a.mp4", top_k=1) == classify(Path(paths[0]).read_bytes(), top_k=1) == best
    assert len(classify(paths, num_frames=8)) == 2
    with pytest.raises(ValueError, match="missing.mp4: no such file"):
        classify("missing.mp4")


def test_pipeline_classifies_batches(checkpoint, processor, paths):
    with pytest.raises(ValueError, match="without tokenizer or feature_extractor cannot do batching"):
        pipeline("video-classification", model=checkpoint, device="cpu")(paths, batch_size=2)
    # What the processor's documentation tells to do
    batched = pipeline("video-classification", model=checkpoint, image_processor=processor, device="cpu")
    scores = [[row["score"] for row in one] for one in batched([*paths, paths[0]], batch_size=2)]
    alone = [[row["score"] for row in batched(path)] for path in [*paths, paths[0]]]
    assert torch.allclose(torch.tensor(scores), torch.tensor(alone), atol=1e-6)


@pytest.mark.slow
def test_works_as_remote_code_without_the_package(processor, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(LayerLockVideoProcessor, "_auto_class", None)
    LayerLockVideoProcessor.register_for_auto_class()
    processor.save_pretrained(tmp_path)
    models = Path(layerlock_hf.models.__file__).parent
    reader = [path.name for path in models.glob("video_reading*.py")]
    assert len(reader) > 1
    for name in ("video_processing_layerlock.py", *reader):
        assert (tmp_path / name).read_text() == (models / name).read_text()
    program = f"""
import sys, torch
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
processor = AutoVideoProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
assert "layerlock_hf" not in sys.modules and "torchvision" not in sys.modules
torch.save(processor({paths!r}).pixel_values_videos, {str(tmp_path / "clips.pt")!r})
"""
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, env=environment, check=True)
    assert torch.equal(torch.load(tmp_path / "clips.pt"), processor(paths).pixel_values_videos)
