import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import logging

from layerlock_hf import LayerLockVideoProcessor
from layerlock_hf.data import ClipTransform, DecodingError, PretrainingClips, fetch, load_videos, read_clip


NUM_FRAMES, HEIGHT, WIDTH = 12, 20, 32


def pixels(video, index):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0], image[: index + 1, :, 1] = 10 * index, 100 * video
    return image


@pytest.fixture
def folder(tmp_path):
    """Two videos, whose frames are numbered without zeros before."""
    for video, name in enumerate(("a", "sub/b")):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for index in range(NUM_FRAMES):
            Image.fromarray(pixels(video, index)).save(tmp_path / "frames" / name / f"img_{index + 1}.png")
    return tmp_path / "frames"


def test_folders_of_pictures_are_videos(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("layerlock_hf"), "propagate", True)
    videos = load_videos(str(folder))
    assert [row["path"] for row in videos["video"]] == [str(folder / "a"), str(folder / "sub" / "b")]
    assert "its 2 folders of pictures are read as videos" in caplog.text
    for video, row in enumerate(videos):
        clip = read_clip(fetch(row), lambda count: list(range(0, count, 5)))
        assert clip.num_frames == NUM_FRAMES and clip.frames.shape == (3, 3, HEIGHT, WIDTH)
        for frame, index in zip(clip.frames, (0, 5, 10), strict=True):
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), pixels(video, index))


def test_lists_and_training_take_folders_of_pictures(folder):
    (folder / "list.txt").write_text("a 12 0\nsub/b 12 1\n")
    videos = load_videos(str(folder / "list.txt"))
    assert videos["label"][:] == [0, 1]
    clips = PretrainingClips(videos, num_samples=4, num_frames=4, frame_stride=2, transform=ClipTransform(16), seed=0)
    shown = torch.stack([clips[index]["pixel_values_videos"] for index in range(4)])
    assert shown.shape == (4, 4, 3, 16, 16) and (shown[:, 1:, 0] > shown[:, :-1, 0]).all()


def test_the_processor_takes_folders_of_pictures(folder):
    processor = LayerLockVideoProcessor(num_frames=4, frame_stride=2, size=HEIGHT)
    clip = processor(str(folder / "a")).pixel_values_videos
    assert clip.shape == (1, 4, 3, HEIGHT, HEIGHT)
    assert (255 * clip[0, :, 0, 0, 0]).round().tolist() == [20, 40, 60, 80]  # the middle: frames 2, 4, 6, 8
    with pytest.raises(
        ValueError, match="frame_rate must be None for a folder of pictures, which have no times, got 8"
    ):
        processor(str(folder / "a"), frame_rate=8)


def test_what_is_no_frame_is_named(folder, monkeypatch):
    def read(**settings):
        return read_clip(str(folder / "a"), lambda count: list(range(count)), **settings)

    with pytest.raises(DecodingError, match="frame_rate must be None"):
        read(frame_rate=5)
    Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16)).save(folder / "a" / "img_7.png")
    with pytest.raises(DecodingError, match="img_7.png is not a frame: mode I;16, more than 8 bits per pixel"):
        read()
    (folder / "a" / "img_7.png").write_bytes(b"nothing")
    with pytest.raises(DecodingError, match="img_7.png is not a frame"):
        read()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # a header may claim any size
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "a" / "img_7.png")
    with pytest.raises(DecodingError, match="img_[0-9]+.png is not a frame: Image size"):
        read()
    monkeypatch.undo()
    with pytest.raises(DecodingError, match="the frames differ in size"):
        read()
    (folder / "empty").mkdir()
    with pytest.raises(DecodingError, match="the folder holds no pictures"):
        read_clip(str(folder / "empty"), lambda count: [0])


def test_a_name_that_is_no_text_costs_its_file_alone(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("layerlock_hf"), "propagate", True)
    for name in (b"a.mp4", b"\xe9.mp4"):
        open(os.path.join(os.fsencode(tmp_path), name), "w").close()
    assert [row["path"] for row in load_videos(str(tmp_path))["video"]] == [str(tmp_path / "a.mp4")]
    assert "whose name is not valid UTF-8: rename it" in caplog.text
