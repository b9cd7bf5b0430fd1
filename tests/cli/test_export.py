"""The program that makes a repository of what a run left, from its command to its errors."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from transformers.utils import VIDEO_PROCESSOR_NAME

from layerlock_hf import LayerLockViTForPretraining
from layerlock_hf.cli import export as program


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """A checkpoint as one process would have written it, with the processor of its run beside it."""
    folder = tmp_path / "run" / "checkpoint-1"
    tiny_config.save_pretrained(folder)
    state = {"model": LayerLockViTForPretraining(tiny_config).state_dict()}
    dcp.save(state, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    (folder / "manifest.json").write_text('{"files": {}}')
    (folder.parent / VIDEO_PROCESSOR_NAME).write_text("{}")
    return folder


@pytest.fixture
def export():
    def export(*arguments):
        program.main([*map(str, arguments)])

    return export


def refused(export, *arguments) -> str:
    """The line that a mistake ends with."""
    with pytest.raises(SystemExit) as error:
        export(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_model_of_a_checkpoint(export, checkpoint, tmp_path):
    export(checkpoint, tmp_path / "model")
    expected = LayerLockViTForPretraining.from_pretrained(tmp_path / "model").state_dict()
    found = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    dcp.load({"model": found}, checkpoint_id=checkpoint / "pytorch_model_fsdp_0", no_dist=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert (tmp_path / "model" / VIDEO_PROCESSOR_NAME).is_file()


def test_the_encoder_of_a_checkpoint(export, checkpoint, tmp_path):
    export(checkpoint, tmp_path / "model", "--what", "encoder")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == ["LayerLockViTModel"]


def test_places_that_cannot_be_written_are_named(export, checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    before = sorted(checkpoint.rglob("*"))
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert refused(export, checkpoint, place).startswith(f"error: output_dir: cannot write to {place}: ")
    for place in (checkpoint, checkpoint / "model"):
        assert "output_dir must lie outside the folder of the run" in refused(export, checkpoint, place)
    assert sorted(checkpoint.rglob("*")) == before
    assert refused(export, checkpoint, "") == "2"
    assert "argument OUT: must be a path, got ''" in capsys.readouterr().err


def test_checkpoints_that_cannot_be_loaded_are_named(export, checkpoint, tmp_path):
    out, config = tmp_path / "out", checkpoint / "config.json"
    assert refused(export, tmp_path / "none", out).startswith(f"error: run must be a folder, got {tmp_path / 'none'}")
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"model_type": "bert"}))
    assert "model_type in its config.json must be layerlock or layerlock_any_encoder, got bert" in refused(
        export, checkpoint, out
    )
    config.write_text(json.dumps(fields | {"hidden_size": 64}))
    assert f"{checkpoint} cannot be loaded: " in refused(export, checkpoint, out)
    config.write_text("{")
    assert f"{checkpoint} cannot be loaded: " in refused(export, checkpoint, out)
    config.unlink()
    assert "it has no config.json" in refused(export, checkpoint, out)
    config.write_text(json.dumps(fields))
    for part in checkpoint.rglob("*.distcp"):
        part.unlink()
    said = refused(export, checkpoint, out)
    assert f"{checkpoint} cannot be loaded: " in said and ".distcp" in said and "Traceback" not in said
    assert not any(out.iterdir())


def test_a_graph_is_told_with_how_far_it_is_off(export, checkpoint, tmp_path, capsys):
    export(checkpoint, tmp_path / "graph", "--to", "torch", "--num_frames", 2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'graph' / 'model.pt2'}: on random clips, at most ")
    assert second == f"{tmp_path / 'graph' / 'README.md'} shows how to run it"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--variants", "int8"], "--variants must be left out for --to hub, got ['int8']"),
        (["--to", "torch", "--dtype", "float16"], "--dtype must be left out for --to torch, got float16"),
        (["--to", "torch", "--variants", "int8"], "variants of torch must be left out, got int8"),
    ],
)
def test_flags_of_another_form_are_refused(export, checkpoint, tmp_path, flags, said):
    assert said in refused(export, checkpoint, tmp_path / "graph", *flags)
    assert not (tmp_path / "graph").exists()
