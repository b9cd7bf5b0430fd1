"""An encoder in the hands of `mteb`, on a task in miniature."""

import sys

import pytest
import torch

from layerlock_hf import LayerLockViTModel
from layerlock_hf.data.procedural import write_procedural_dataset


NUM_VIDEOS = 12
pytestmark = pytest.mark.slow  # importing mteb takes seconds


@pytest.fixture
def encoder_class():
    """The class of encoders, where mteb is there."""
    pytest.importorskip("mteb", reason="mteb is an optional extra")
    from layerlock_hf.evaluation.mveb import MvebEncoder

    return MvebEncoder


@pytest.fixture
def task(tmp_path, encoder_class):
    """A task of two classes."""
    from datasets import Dataset, DatasetDict, Video
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    write_procedural_dataset(tmp_path / "data", NUM_VIDEOS, num_frames=8, image_size=32, progress=False)
    paths = sorted(map(str, (tmp_path / "data" / "videos").glob("*.mp4")))
    rows = {"video": paths, "label": [index % 2 for index in range(NUM_VIDEOS)]}
    videos = Dataset.from_dict(rows).cast_column("video", Video())

    class Miniature(AbsTaskClassification):
        metadata = TaskMetadata(
            name="MiniatureVideoClassification",
            description="Generated videos.",
            dataset={"path": "none/none", "revision": "0"},
            type="VideoClassification",
            category="v2c",
            modalities=["video"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
        )
        input_column_name = "video"
        samples_per_label, n_experiments = 2, 2

        def load_data(self, num_proc=None, **kwargs):
            self.dataset = DatasetDict(train=videos, test=videos)
            self.data_loaded = True

    return Miniature()


@pytest.fixture
def folder(tiny_config, tmp_path):
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_mteb_evaluates_an_encoder(encoder_class, task, folder):
    import mteb

    encoder = encoder_class(str(folder), depth=2)
    results = mteb.evaluate(encoder, [task], cache=None, encode_kwargs={"batch_size": 5})
    (score,) = results[0].scores["test"]
    assert 0 <= score["accuracy"] <= 1 and len(score["scores_per_experiment"]) == 2


def test_an_embedding_is_the_mean_of_tokens_at_a_depth(encoder_class, folder):
    videos = [torch.randint(256, (4, 3, 20, 16 + width), dtype=torch.uint8) for width in (0, 8)]
    embeddings = encoder_class(str(folder), depth=2).embed(videos)
    model = LayerLockViTModel.from_pretrained(folder).eval()
    clip = encoder_class(str(folder)).processor(videos).pixel_values_videos
    with torch.no_grad():
        (tokens,) = model.tap(clip, [2])
    torch.testing.assert_close(embeddings, tokens.mean(dim=1))


def test_results_of_different_encoders_are_kept_apart(encoder_class, folder, tmp_path, tiny_config):
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path / "other" / "encoder")
    encoders = [
        encoder_class(str(folder)),
        encoder_class(str(folder), depth=1),
        encoder_class(str(folder), num_frames=2),
    ]
    encoders.append(encoder_class(str(tmp_path / "other" / "encoder")))
    keys = {(encoder.mteb_model_meta.name, encoder.mteb_model_meta.revision) for encoder in encoders}
    assert len(keys) == 4
    assert encoder_class(str(folder)).mteb_model_meta.revision == encoders[0].mteb_model_meta.revision
    with pytest.raises(ValueError, match="depth must be between 0 and the 6 layers, got 7"):
        encoder_class(str(folder), depth=7)


def test_what_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    monkeypatch.delitem(sys.modules, "layerlock_hf.evaluation.mveb", raising=False)
    with pytest.raises(ImportError, match=r'mteb must be installed .* pip install "layerlock_hf\[mteb\]"'):
        import layerlock_hf.evaluation.mveb  # noqa: F401
