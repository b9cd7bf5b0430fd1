import pytest
from transformers import pipeline

from layerlock_hf import LayerLockVideoProcessor, LayerLockViTForVideoClassification
from layerlock_hf.data.procedural import write_procedural_dataset


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    write_procedural_dataset(folder, 1, num_frames=24, image_size=32, progress=False)
    return str(next((folder / "videos").iterdir()))


def test_frame_sampling_rate_is_heeded(tiny_config, tmp_path, video):
    tiny_config.update({"num_labels": 3})
    LayerLockViTForVideoClassification(tiny_config).save_pretrained(tmp_path)
    processor = LayerLockVideoProcessor.from_config(tiny_config, frame_stride=2)
    processor.save_pretrained(tmp_path)
    classify = pipeline("video-classification", model=str(tmp_path), device="cpu")

    def scores(**settings):
        return {row["label"]: row["score"] for row in classify(video, **settings)}

    assert scores(frame_sampling_rate=2) == scores()  # what the processor does by itself
    assert scores(frame_sampling_rate=1) != scores() != scores(frame_sampling_rate=5)
    clip = processor(video, frame_stride=5).pixel_values_videos
    expected = classify.model(clip).logits.softmax(dim=-1)[0].tolist()
    assert list(scores(frame_sampling_rate=5, top_k=3).values()) == pytest.approx(sorted(expected, reverse=True))
