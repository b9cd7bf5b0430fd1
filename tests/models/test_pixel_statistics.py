import json

import numpy as np
import pytest
import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from layerlock_hf.models.pixel_statistics import pixel_statistics


def write(path, **settings):
    (path / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "processor",
    [
        transformers.VivitImageProcessor(),
        transformers.VivitImageProcessor(offset=False, rescale_factor=1 / 255, image_mean=[0.1, 0.2, 0.3]),
        VideoMAEImageProcessorPil(image_mean=[0.45, 0.44, 0.43], image_std=[0.225, 0.224, 0.223]),
        CLIPImageProcessorPil(),
        CLIPImageProcessorPil(do_normalize=False),
        CLIPImageProcessorPil(do_rescale=False, image_mean=[123.0] * 3, image_std=[58.0] * 3),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_pixels_are_what_the_processor_makes_of_them(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    expected = processor(list(frames), do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    statistics = pixel_statistics(tmp_path)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics.values())
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close((pixels - mean) / std, expected.view_as(pixels).float(), atol=1e-5, rtol=1e-5)


def test_files_of_processors(tmp_path):
    assert pixel_statistics(tmp_path) is None
    write(tmp_path, image_mean=0.5, image_std=0.25)
    assert pixel_statistics(tmp_path) == {"pixel_mean": [0.5] * 3, "pixel_std": [0.25] * 3}
    # ViViT's processor of videos centres always and writes no offset: bytes * 2 / 255 - 1, then (x - 0.5) / 0.5
    video = {"video_processor_type": "VivitVideoProcessor", "rescale_factor": 1 / 127.5}
    video |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "do_normalize": True}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    statistics = pixel_statistics(tmp_path)
    torch.testing.assert_close(statistics, {"pixel_mean": [0.75] * 3, "pixel_std": [0.25] * 3})
    nested = {"image_processor": {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}}
    (tmp_path / "video_preprocessor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert pixel_statistics(tmp_path)["pixel_mean"] == [0.1] * 3
    (tmp_path / "processor_config.json").write_text("{}")
    write(tmp_path, do_normalize=True, image_mean=[0.5] * 3)
    with pytest.raises(ValueError, match="image_std"):
        pixel_statistics(tmp_path)
