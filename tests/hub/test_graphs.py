"""Models as graphs: that they give what the models give, stand alone, and are not kept where they differ."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import VideoMAEConfig

from layerlock_hf import (
    LayerLockVideoProcessor,
    LayerLockViTConfig,
    LayerLockViTForDepthEstimation,
    LayerLockViTForVideoClassification,
    LayerLockViTModel,
    TransformersEncoderConfig,
    TransformersEncoderForVideoClassification,
)
from layerlock_hf.hub import graph_folder
from layerlock_hf.hub.graph_folder import write_graph
from layerlock_hf.hub.graphs import OUTPUTS, TORCH, OneOutput, compare, trace
from layerlock_hf.hub.onnx_graphs import ONNX, has_data, load_onnx, to_float16, to_int8, write_onnx


ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "encoder": LayerLockViTModel,
    "classification": LayerLockViTForVideoClassification,
    "depth": LayerLockViTForDepthEstimation,
}
SMALL = {"num_hidden_layers": 2, "num_decoder_layers": 1, "readout_hidden_size": 16, "readout_num_attention_heads": 2}
# Not every kind with all positions: tracing takes seconds
KINDS = [("encoder", "learned"), ("encoder", "sincos"), ("classification", "rope"), ("depth", "rope_attention")]


@pytest.fixture(scope="module")
def make(tiny_sizes):
    """A function that makes a model of a kind, with a readout that resizes features in time."""

    def make(kind: str, position_embedding: str = "rope"):
        sizes = {**tiny_sizes, **SMALL, "decoding_patch_size": [2, 4, 4], "readout_num_frames": 3}
        config = LayerLockViTConfig.from_preset("tiny", **sizes, position_embedding=position_embedding)
        config.num_labels = 5
        return MODELS[kind](config)

    return make


@pytest.fixture(scope="module")
def classifier(make, tmp_path_factory) -> Path:
    """The folder of a graph."""
    folder = tmp_path_factory.mktemp("graphs") / "classifier"
    model = make("classification")
    model.config.id2label = {0: "wave", 1: "clap", 2: "jump", 3: "sit", 4: "fall"}
    write_graph(model, "classification", processor_of(model), folder, "torch")
    return folder


def processor_of(model) -> LayerLockVideoProcessor:
    return LayerLockVideoProcessor.from_config(model.config)


@torch.no_grad()
def expected(model, kind: str, clips: torch.Tensor) -> torch.Tensor:
    return getattr(model(clips), OUTPUTS[kind].name)


@pytest.mark.parametrize("kind, position_embedding", [("encoder", "learned"), ("depth", "rope_attention")])
def test_a_graph_of_torch_gives_what_its_model_gives(make, tmp_path, kind, position_embedding):
    model = make(kind, position_embedding).bfloat16()
    differences = write_graph(model, kind, processor_of(model), tmp_path / "graph", "torch")
    assert set(differences) == {"model.pt2"}
    clips = torch.rand(5, 4, 3, 16, 16)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "graph" / "model.pt2").module()(clips)
    torch.testing.assert_close(found, expected(model, kind, clips), rtol=1e-4, atol=1e-4)


def test_a_graph_tells_how_to_run_it(classifier, monkeypatch, capsys):
    monkeypatch.chdir(classifier)
    facts = json.loads(Path("graph.json").read_text())
    assert facts["input"]["shape"] == ["batch", 4, 3, 16, 16] and facts["classes"][2] == "jump"
    assert facts["files"]["model.pt2"]["bytes"] == Path("model.pt2").stat().st_size
    assert facts["files"]["model.pt2"]["largest"] <= facts["tolerance"]
    (code,) = re.findall(r"^```python\n(.*?)^```$", Path("README.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "(2, 5)\n"
    processor = LayerLockVideoProcessor.from_pretrained(".")
    assert processor(torch.zeros(4, 3, 20, 24, dtype=torch.uint8)).pixel_values_videos.shape == (1, 4, 3, 16, 16)


def test_nothing_in_a_graph_names_the_machine(classifier):
    for path in classifier.iterdir():
        content = path.read_bytes()
        assert not [place for place in (classifier, ROOT, sys.prefix) if str(place).encode() in content], path


def test_a_graph_that_differs_is_not_kept(make, tmp_path, monkeypatch):
    model = make("encoder")
    for error in (1e-2, float("nan")):
        off = dataclasses.replace(TORCH, load=lambda path, by=error: lambda clips: TORCH.load(path)(clips) + by)
        monkeypatch.setitem(graph_folder.FORMS, "torch", off)
        with pytest.raises(ValueError, match="the graph must give what the model gives, to 0.0001, got outputs up to"):
            write_graph(model, "encoder", processor_of(model), tmp_path / "graph", "torch")
    assert not any(tmp_path.iterdir())


def test_a_size_that_the_model_cannot_take_is_named(make, tmp_path):
    model = make("depth")
    processor = LayerLockVideoProcessor.from_config(model.config, num_frames=8)
    with pytest.raises(ValueError, match="must have 4 frames of 16x16 pixels, for which the depth readout has"):
        write_graph(model, "depth", processor, tmp_path / "graph", "torch")
    assert not any(tmp_path.iterdir())


def test_how_far_outputs_are_from_each_other():
    outputs = torch.tensor([[3.0, 4.0], [0.0, 12.0]])
    difference = compare(outputs + torch.tensor([[0.0, 0.0], [13.0, 0.0]]), outputs, are_classes=True)
    assert (difference.largest, difference.scale, difference.relative, difference.same_class) == (13, 12, 1, 0.5)
    assert not difference.is_tolerable and compare(outputs, outputs, False).same_class is None
    assert compare(outputs + 1.1e-3, outputs, False).is_tolerable  # 1e-4 of the largest output
    assert not compare(outputs / 100 + 1.1e-3, outputs / 100, False).is_tolerable


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r'onnxscript must be installed .* pip install "layerlock_hf\[onnx\]"'):
        ONNX.check_packages()


@pytest.mark.slow
@pytest.mark.parametrize("kind, position_embedding", KINDS)
def test_a_graph_of_onnx_runs_without_the_package(make, tmp_path, kind, position_embedding):
    model, folder = make(kind, position_embedding), tmp_path / "graph"
    differences = write_graph(model, kind, processor_of(model), folder, "onnx", ["float16", "int8"])
    assert differences["model.onnx"].is_tolerable
    # Measured: 0.0004 to 0.0008, and 0.01 to 0.02
    assert differences["model_float16.onnx"].relative < 0.005 and differences["model_int8.onnx"].relative < 0.1
    clips = torch.rand(5, 4, 3, 16, 16)
    torch.testing.assert_close(
        load_onnx(folder / "model.onnx")(clips), expected(model, kind, clips), rtol=1e-4, atol=1e-4
    )
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not [place for place in (tmp_path, ROOT, sys.prefix) if str(place).encode() in content], path
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    without = "import sys\nfor name in ('torch', 'transformers', 'layerlock_hf'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", without + code]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True)
    assert run.stdout == f"{(2, *expected(model, kind, clips).shape[1:])}\n"


@pytest.mark.slow
def test_weights_in_a_file_of_their_own(make, tmp_path):
    """As those of more than a gigabyte, of which each smaller form has its own file, too."""
    model = OneOutput(make("encoder"), OUTPUTS["encoder"])
    clips = torch.rand(3, 4, 3, 16, 16)
    path = tmp_path / "model.onnx"
    write_onnx(trace(model, clips), "last_hidden_state", path, external_data=True)
    assert has_data(path)
    with torch.no_grad():
        outputs = model(clips)
    for convert, bound in ((to_float16, 0.005), (to_int8, 0.1)):
        smaller = tmp_path / f"{convert.__name__}.onnx"
        convert(path, smaller)
        assert has_data(smaller)
        assert compare(load_onnx(smaller)(clips), outputs, False).relative < bound
    assert compare(load_onnx(path)(clips), outputs, False).is_tolerable


@pytest.mark.slow
def test_a_graph_of_somebody_elses_encoder(tmp_path):
    sizes = {"image_size": 16, "num_frames": 4}
    encoder = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = TransformersEncoderConfig(
        encoder_config=VideoMAEConfig(**sizes, **encoder, patch_size=4, tubelet_size=2),
        **sizes,
        **{"readout_depth": 2, "readout_hidden_size": 16, "readout_num_attention_heads": 2},
    )
    model = TransformersEncoderForVideoClassification(config)
    differences = write_graph(model, "classification", processor_of(model), tmp_path / "graph", "onnx")
    assert differences["model.onnx"].is_tolerable
