"""A tiny encoder, and videos whose frames tell their numbers."""

import av
import numpy as np
import pytest
import torch

import layerlock_hf
from layerlock_hf import LayerLockVideoProcessor, LayerLockViTConfig, LayerLockViTModel
from layerlock_hf.embedding.shards import FORMATS


@pytest.fixture(scope="session")
def save_model(tiny_sizes):
    """A function that writes a random encoder of 6 layers for clips of 4 frames of 16 x 16 pixels, with processor."""

    def save(folder, seed=0):
        torch.manual_seed(seed)
        config = LayerLockViTConfig.from_preset("tiny", **tiny_sizes)
        LayerLockViTModel(config).save_pretrained(folder)
        LayerLockVideoProcessor.from_config(config).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def model(save_model, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def write_video():
    """A function that writes a video whose frame i has the brightness 5 + 8 i, modulo 240, and maybe a tint."""

    def write(path, num_frames, rate=10, height=24, width=32, tint=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", 8
            for index in range(num_frames):
                pixels = np.full((height, width, 3), 5 + 8 * index % 240, np.uint8)
                pixels[..., 2] += np.uint8(tint)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return write


def zero_packet(path, index):
    """Overwrite the data of a packet by zeros, so that it does not decode."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][index]
        start, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def damaged(tmp_path_factory, write_video):
    """A video of 40 frames at 10 a second, of which frame 20 does not decode."""
    return zero_packet(write_video(tmp_path_factory.mktemp("damaged") / "damaged.mp4", 40), 20)


@pytest.fixture(scope="session")
def videos(tmp_path_factory, write_video):
    """Six of 12 to 37 frames, each of its own tint; one that is damaged in the middle and cut short, one that is text,
    and one of 3 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(folder / f"v{number}.mp4", 12 + 5 * number, rate=10 + number, tint=40 * number)
    whole = zero_packet(write_video(folder / "cut.mp4", 40), 12).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    (folder / "text.mp4").write_text("no video")
    write_video(folder / "short.mp4", 3)
    return folder


@pytest.fixture(scope="session")
def embed_in_each_format(videos, model, tmp_path_factory):
    """A function from settings to a folder of each format."""

    def embed(**settings):
        folders = {kind: tmp_path_factory.mktemp(kind) for kind in FORMATS}
        for kind, folder in folders.items():
            layerlock_hf.embed(str(videos), folder, model, format=kind, **settings)
        return folders

    return embed
