"""From what a run left to a graph: which model, of which clips, and what is refused."""

import pytest
import torch

from layerlock_hf import (
    LayerLockVideoProcessor,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    export_graph,
)
from layerlock_hf.pretraining.graphs import resized


@pytest.fixture
def save(tiny_config, tmp_path):
    """A function that saves a model and its processor, and gives the folder."""

    def save(kind, **settings):
        tiny_config.update({"num_hidden_layers": 2, "num_decoder_layers": 1, "decoding_patch_size": [2, 4, 4]})
        kind(tiny_config).save_pretrained(tmp_path / "run")
        LayerLockVideoProcessor.from_config(tiny_config, **settings).save_pretrained(tmp_path / "run")
        return tmp_path / "run"

    return save


def test_the_encoder_of_a_run_for_other_clips(save, tmp_path):
    run = save(LayerLockViTForPretraining)
    differences = export_graph(run, tmp_path / "graph", "torch", image_size=24, num_frames=6)
    assert differences["model.pt2"].is_tolerable
    program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    assert program(torch.rand(5, 6, 3, 24, 24)).shape == (5, 3 * 6 * 6, 32)


def test_other_clips_show_the_same_part_of_the_frames():
    processor = LayerLockVideoProcessor(num_frames=16, frame_stride=4, size=1.15 * 224, crop_size=224)
    other = resized(processor, image_size=112, num_frames=8)
    assert (other.num_frames, other.frame_stride, other.size) == (8, 4, {"shortest_edge": 128.8})
    assert other.shown_box(240, 320) == processor.shown_box(240, 320)
    assert resized(processor, None, None).to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"form": "caffe"}, "form must be one of onnx, torch, got caffe"),
        ({"variants": ["int8"]}, "variants of torch must be left out, got int8"),
        ({"what": "pretraining"}, "what must be one of encoder, classification, depth for a graph, got pretraining"),
        ({"what": "depth"}, "what must be pretraining or encoder for .*, got depth: train one"),
        ({"image_size": 18}, "use multiples of these"),
        ({"checkpoint": 3}, "checkpoint must be one of those in"),
    ],
)
def test_mistakes_are_named(save, tmp_path, settings, said):
    run = save(LayerLockViTForPretraining)
    with pytest.raises(ValueError, match=said):
        export_graph(run, tmp_path / "graph", **{"form": "torch", **settings})
    assert not (tmp_path / "graph").exists() or not any((tmp_path / "graph").iterdir())


def test_places_that_hold_something_are_left_alone(save, tmp_path):
    run = save(LayerLockViTForDepthEstimation)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for place, said in ((tmp_path / "full", "empty folder or none"), (run / "graph", "must lie outside")):
        with pytest.raises(ValueError, match=said):
            export_graph(run, place, "torch")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_pixels_that_the_processor_normalises_are_refused(save, tmp_path):
    run = save(LayerLockViTForDepthEstimation, do_normalize=True)
    with pytest.raises(ValueError, match="do_normalize of the video processor must be False, got True"):
        export_graph(run, tmp_path / "graph", "torch")
