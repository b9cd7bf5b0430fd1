"""Released 4DS weights: the original's outputs where its fixtures are at hand, made-up checkpoints of other sizes."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from original_4ds import PREFIXES, checkpoint
from transformers import AutoModel, AutoModelForDepthEstimation, AutoModelForVideoClassification

from layerlock_hf import LayerLockViTForDepthEstimation, LayerLockViTForVideoClassification, LayerLockViTModel, export
from layerlock_hf.cli import convert as program
from layerlock_hf.models.conversion_4ds import convert_4ds


ROOT = Path(__file__).parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "4ds"
AUTO_CLASSES = {"depth": AutoModelForDepthEstimation, "cls": AutoModelForVideoClassification}


def original(arrays, video, fraction=0.95, prefixes=PREFIXES):
    """The original computation on its own arrays, clips (B, T, H, W, C): list of features, output of the readout."""
    e, r = prefixes

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def dense(x, name, equation):
        return torch.einsum(equation, x, arrays[f"{name}/kernel"]) + arrays[f"{name}/bias"]

    def attend(query, key, value):
        weights = (torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, value)

    kernel = arrays[f"{e}encoder/patch_embedding/Conv_0/kernel"]
    x = torch.conv3d(video.permute(0, 4, 1, 2, 3), kernel.permute(4, 3, 0, 1, 2), stride=kernel.shape[:3])
    x = x.permute(0, 2, 3, 4, 1) + arrays[f"{e}encoder/patch_embedding/Conv_0/bias"]
    x = x + arrays[f"{e}encoder/posenc/embeddings"]
    grid, x = x.shape[1:4], x.flatten(1, 3)
    features, layer = [x], 0
    while f"{e}processor/layers_{layer}/attention_norm/scale" in arrays:
        features.append(x)
        name = f"{e}processor/layers_{layer}"
        y = norm(x, f"{name}/attention_norm")
        q, k, v = (dense(y, f"{name}/attention/{part}", "bnc,chd->bnhd") for part in ("query", "key", "value"))
        x = x + dense(attend(q, k, v), f"{name}/attention/out", "bnhd,hdc->bnc")
        y = gelu(dense(norm(x, f"{name}/mlp_norm"), f"{name}/mlp/dense_in", "bnc,cm->bnm"))
        x = x + dense(y, f"{name}/mlp/dense_out", "bnm,mc->bnc")
        layer += 1
    if f"{r}query" not in arrays:
        return features, None
    x = features[int(len(features) * fraction) - 1].unflatten(1, (grid[0], -1))
    table = arrays[f"{r}temporal_posenc/embeddings"]
    frames = []  # one at a time: cubic interpolation between the nearest four, those outside left out
    for step in range(len(table)):
        place = (step + 0.5) * grid[0] / len(table) - 0.5
        weights = {}
        for t in range(grid[0]):
            d = abs(place - t)
            weights[t] = 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0
        frames.append(sum(weight * x[:, t] for t, weight in weights.items()) / sum(weights.values()))
    x = (norm(torch.stack(frames, 1), f"{r}LayerNorm_0") + table).flatten(1, 2)
    key, value = (dense(x, f"{r}{part}_embedding", "bnc,chd->bnhd") for part in ("key", "value"))
    query = arrays[f"{r}query"].expand(len(x), -1, -1, -1)
    x = query.flatten(2) + dense(attend(query, key, value).flatten(2), f"{r}Dense_0", "bqc,cd->bqd")
    y = gelu(dense(norm(x, f"{r}LayerNorm_1"), f"{r}MLP_0/Dense_0", "bqc,cd->bqd"))
    return features, dense(x + dense(y, f"{r}MLP_0/Dense_1", "bqc,cd->bqd"), f"{r}Dense_1", "bqc,cd->bqd")


def assert_features(encoder, video, features, atol):
    """features: the original's list, which holds the embedded tokens twice and not the last layer's output."""
    hidden_states = encoder(video.permute(0, 1, 4, 2, 3), output_hidden_states=True).hidden_states
    assert len(features) == len(hidden_states)
    for expected, found in zip(features, [hidden_states[0], *hidden_states[:-1]], strict=True):
        torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("task", AUTO_CLASSES)
@torch.inference_mode()
def test_fixtures_of_the_original(tmp_path, task):
    path = FIXTURES / f"4ds_tiny_{task}.npz"
    if not path.is_file():
        pytest.skip("the fixtures of the original code are not here")
    sizes = json.loads(path.with_suffix(".json").read_text())
    given = {name: torch.from_numpy(array) for name, array in np.load(FIXTURES / f"4ds_tiny_{task}_io.npz").items()}
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    convert_4ds(arrays, sizes["readout_depth"]).save_pretrained(tmp_path)
    features = [given[f"features_{index}"] for index in range(sizes["num_layers"] + 1)]
    assert_features(AutoModel.from_pretrained(tmp_path), given["video"], features, atol=1e-4)
    model = AUTO_CLASSES[task].from_pretrained(tmp_path)
    outputs = model(given["video"].permute(0, 1, 4, 2, 3))
    found = outputs.logits if task == "cls" else outputs.predicted_depth.unsqueeze(-1)
    torch.testing.assert_close(found, given["output"], atol=1e-4, rtol=0)
    assert model.config.decoding_patch_size == sizes["decoding_patch_size"]
    # What checks the sizes below agrees with the original
    by_hand, output = original(arrays, given["video"])
    torch.testing.assert_close(by_hand, features, atol=1e-4, rtol=0)
    if task == "cls":
        torch.testing.assert_close(output.squeeze(1), given["output"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "fields, options, box",
    [
        ({}, {}, [3, 6, 6]),
        ({"layers": 2, "heads": 3, "steps": 11}, {}, [3, 6, 6]),
        ({"layers": 7, "patch": (1, 8), "channels": 1}, {"readout_depth_fraction": 0.5}, [1, 4, 4]),
        ({"readout": (18, 3, 2 * 4 * 4, 3 * 6 * 6)}, {}, [3, 6, 6]),
        ({"readout": (18, 3, 2 * 3 * 3, 3 * 8 * 8)}, {"readout_depth_fraction": 1.0}, [3, 8, 8]),
        ({"readout": (18, 3, 3 * 3 * 3, 2 * 8 * 8)}, {}, [2, 8, 8]),
        ({"readout": (18, 3, 2 * 6 * 2, 3 * 4 * 12)}, {"decoding_patch_size": [3, 4, 12]}, [3, 4, 12]),
        ({"readout": (18, 3, 6 * 6 * 6, 16), "patch": (2, 3)}, {"decoding_patch_size": [1, 4, 4]}, [1, 4, 4]),
        ({"readout": None}, {}, [3, 6, 6]),
        ({"readout": None, "prefixes": ("params/", None), "patch": (3, 3)}, {}, [3, 3, 3]),
        ({"readout": None, "prefixes": ("", None)}, {}, [3, 6, 6]),
        ({"prefixes": ("a/b/", "")}, {}, [3, 6, 6]),
    ],
)
@torch.inference_mode()
def test_checkpoints_of_other_sizes(tmp_path, fields, options, box):
    arrays = checkpoint(**fields)
    convert_4ds(arrays, **options).save_pretrained(tmp_path)
    video = torch.rand(2, 6, 24, 24, fields.get("channels", 3))
    features, output = original(
        arrays, video, options.get("readout_depth_fraction", 0.95), fields.get("prefixes", PREFIXES)
    )
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is LayerLockViTModel and not info["missing_keys"] and not info["unexpected_keys"]
    assert_features(encoder, video, features, atol=1e-5)
    assert encoder.config.decoding_patch_size == box
    clip = video.permute(0, 1, 4, 2, 3)
    logits, depth = (
        AutoModelForVideoClassification.from_pretrained(tmp_path)(clip).logits,
        AutoModelForDepthEstimation.from_pretrained(tmp_path)(clip).predicted_depth,
    )
    assert depth.shape == (2, 6, 24, 24)
    if output is not None and output.shape[1] == 1:
        torch.testing.assert_close(logits, output.squeeze(1), atol=1e-5, rtol=0)
    elif output is not None:
        f, y, x = box
        boxes = output.view(2, 6 // f, 24 // y, 24 // x, f, y, x)
        expected = boxes.permute(0, 1, 4, 2, 5, 3, 6).reshape(2, 6, 24, 24)
        torch.testing.assert_close(depth, expected, atol=1e-5, rtol=0)


def test_script(tmp_path, monkeypatch, capsys):
    arrays = checkpoint(readout=(16, 2, 6 * 6 * 2, 48))
    path, output_dir = tmp_path / "weights.npz", tmp_path / "model"
    np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    command = ["convert_4ds.py", "--checkpoint", str(path), "--output_dir", str(output_dir)]
    command += ["--readout_depth_fraction", "0.5", "--decoding_patch_size", "1", "4", "12"]
    monkeypatch.setattr(sys, "argv", command)
    program.main(sys.argv[1:])
    assert "LayerLockViTForDepthEstimation" in capsys.readouterr().out
    model = AutoModelForDepthEstimation.from_pretrained(output_dir)
    assert (model.config.readout_depth, model.config.decoding_patch_size) == (0, [1, 4, 12])
    expected = convert_4ds(arrays, 0.5, [1, 4, 12]).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    export(output_dir, tmp_path / "export")
    assert "weights.npz" in (tmp_path / "export" / "README.md").read_text()


def test_deduced_configuration():
    config = convert_4ds(checkpoint(layers=9, steps=12, readout=(16, 2, 1, 9))).config
    assert (config.image_size, config.num_frames, config.patch_size, config.tubelet_size) == (24, 6, 12, 3)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (30, 9, 5)
    assert (config.intermediate_size, config.num_labels, config.readout_num_frames) == (70, 9, 12)
    assert (config.readout_hidden_size, config.readout_num_attention_heads) == (16, 2)
    assert (config.position_embedding, config.use_final_norm, config.decoder) == ("learned", False, "predictor")
    assert config.readout_depth == 7
    assert convert_4ds(checkpoint(layers=1)).config.num_hidden_layers == 1


def test_class_of_the_task():
    assert type(convert_4ds(checkpoint())) is LayerLockViTForVideoClassification
    assert type(convert_4ds(checkpoint(readout=(16, 2, 32, 108)))) is LayerLockViTForDepthEstimation
    assert type(convert_4ds(checkpoint(readout=None))) is LayerLockViTModel
    model = convert_4ds({name: array.half() for name, array in checkpoint().items()})
    assert all(parameter.dtype == torch.float32 and not parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted(checkpoint(layers=2)))
def test_missing_arrays_are_named(name):
    arrays = checkpoint(layers=2)
    del arrays[name]
    with pytest.raises(ValueError, match=name):
        convert_4ds(arrays)


@pytest.mark.parametrize(
    "name",
    [
        "params/layers_0/processor/layers_0/attention/query_norm/scale",
        "params/layers_0/processor/layers_2/mlp/dense_in/kernel",
        "params/layers_0/processor/final_norm/scale",
        "params/layers_0/encoder/posenc/scale",
        "params/layers_1/Dense_0/kernel",
        "params/layers_2/Dense_2/kernel",
        "query",
        "step",
    ],
)
@pytest.mark.parametrize("readout", [None, (16, 2, 1, 9), (16, 2, 32, 108)])
def test_surplus_arrays_are_named(name, readout):
    arrays = {name: torch.zeros(3), **checkpoint(layers=2, readout=readout)}
    with pytest.raises(ValueError, match=f"1 surplus: {name}$"):
        convert_4ds(arrays)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("params/layers_0/processor/layers_1/attention/key/kernel", (30, 6, 5)),
        ("params/layers_0/processor/layers_1/mlp/dense_in/kernel", (70, 30)),
        ("params/layers_0/processor/layers_0/attention/query/kernel", (30, 30)),
        ("params/layers_0/encoder/posenc/embeddings", (8, 30)),
        ("params/layers_2/Dense_0/kernel", (16, 17)),
    ],
)
def test_wrong_shapes_are_named(name, shape):
    with pytest.raises(ValueError, match=name):
        convert_4ds({**checkpoint(), name: torch.zeros(shape)})


def test_what_cannot_be_converted_is_refused():
    integers = {**checkpoint(), "params/layers_2/query": torch.zeros(1, 2, 8, dtype=torch.int32)}
    with pytest.raises(ValueError, match="not of floats: params/layers_2/query"):
        convert_4ds(integers)
    name = "params/layers_0/encoder/posenc/embeddings"
    with pytest.raises(ValueError, match=f"square.*{name}"):
        convert_4ds({**checkpoint(), name: torch.zeros(2, 2, 3, 30)})
    with pytest.raises(ValueError, match="no array of a 4DS encoder"):
        convert_4ds({"weight": torch.zeros(3)})
    depth = checkpoint(frames=12, patch=(3, 12), readout=(16, 2, 12 * 24 * 24 // 16, 16))
    with pytest.raises(
        ValueError, match=r"decoding_patch_size must be a box .* got None: .*\[\[1, 4, 4\], \[4, 2, 2\]\]"
    ):
        convert_4ds(depth)
    assert convert_4ds(depth, decoding_patch_size=[4, 2, 2]).config.decoding_patch_size == [4, 2, 2]
    with pytest.raises(ValueError, match=r"decoding_patch_size must be a box .* got \[2, 8, 8\]"):
        convert_4ds(depth, decoding_patch_size=[2, 8, 8])


@pytest.fixture
def main(monkeypatch):
    """Runs the program; the line that it ends with."""

    def main(*options) -> str:
        monkeypatch.setattr(sys, "argv", ["convert_4ds.py", *map(str, options)])
        with pytest.raises(SystemExit) as error:
            program.main(sys.argv[1:])
        assert "\n" not in str(error.value)
        return str(error.value)

    return main


def test_files_that_are_no_checkpoints_are_named(main, tmp_path):
    arrays = {name: array.numpy() for name, array in checkpoint(layers=1).items()}
    np.savez(tmp_path / "whole.npz", **arrays)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "empty.npz").touch()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "rotten.npz").write_bytes(whole[:400] + bytes(200) + whole[600:])
    (tmp_path / "text.npz").write_text("no checkpoint")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}]))
    np.savez(tmp_path / "strings.npz", a=np.array(["b"]))
    with zipfile.ZipFile(tmp_path / "texts.npz", "w") as archive:
        archive.writestr("a.txt", "text")
    with zipfile.ZipFile(tmp_path / "nothing.npz", "w"):
        pass
    for name, message in {
        "none.npz": "No such file",
        "empty.npz": "must be a NumPy archive",
        "half.npz": "must be a NumPy archive",
        "rotten.npz": "is damaged",
        "text.npz": "must be a NumPy archive",
        "one.npy": "must be a NumPy archive",
        "pickled.npz": "a is damaged, or not an array of numbers",
        "strings.npz": "a must hold numbers, got the type <U1",
        "texts.npz": "a.txt is not an array",
        "nothing.npz": "no array of a 4DS encoder",
    }.items():
        said = main("--checkpoint", tmp_path / name, "--output_dir", tmp_path / "out")
        assert said.startswith(f"error: {tmp_path / name}: ") and message in said and "pickle=" not in said
    assert not any((tmp_path / "out").iterdir())


def test_places_that_cannot_be_written_are_named_before_the_checkpoint_is_read(main, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "out" / "config.json").mkdir(parents=True)
    for place, culprit in {"file": "file", "file/below": "file/below", "out": "out/config.json"}.items():
        said = main("--checkpoint", tmp_path / "none.npz", "--output_dir", tmp_path / place)
        assert f"error: output_dir: cannot write to {tmp_path / culprit}: " in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--readout_depth_fraction", "inf"],
            "--readout_depth_fraction: must be a number above 0 and at most 1, got 'inf'",
        ),
        (["--readout_depth_fraction", "nan"], "at most 1, got 'nan'"),
        (
            ["--decoding_patch_size", "0", "7", "7"],
            "--decoding_patch_size: must be a whole number of at least 1, got '0'",
        ),
        (["--output_dir", ""], "--output_dir: must be a path, got ''"),
        (["--checkpoint", "https://host/a.npz"], "got 'https://host/a.npz': download it first"),
    ],
)
def test_arguments_are_checked_as_they_are_read(main, tmp_path, capsys, options, message):
    assert main("--checkpoint", "none.npz", "--output_dir", tmp_path / "out", *options) == "2"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_box_of_depth_for_a_classifier_is_refused():
    with pytest.raises(ValueError, match=r"decoding_patch_size must be left out, got \[3, 6, 6\]"):
        convert_4ds(checkpoint(), decoding_patch_size=[3, 6, 6])


@pytest.mark.parametrize("fraction", [float("nan"), float("inf"), 0, -1, 1.5])
def test_fractions_that_name_no_depth_are_refused(fraction):
    with pytest.raises(
        ValueError, match=f"fraction must be above 0 and at most 1, and name one of the 3 layers, got {fraction}"
    ):
        convert_4ds(checkpoint(), readout_depth_fraction=fraction)
