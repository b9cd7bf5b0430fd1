import socket

import pytest

from layerlock_hf.utils import hub_names
from layerlock_hf.utils.hub_names import check_checkpoint, check_hub


@pytest.mark.parametrize("name", ["./nope", "/nope", "~/nope", "a/b/c", "runs/nope"])
def test_folders_that_are_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=f"there is no folder {name}"):
        check_checkpoint(name)


def test_files_are_no_folders(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="model.safetensors is a file: give the folder that it lies in"):
        check_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["MCG-NJU/videomae-base", "gpt2"])
def test_names_of_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_names, "check_hub", lambda why: None)
    assert check_checkpoint(name) == name
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="model holds no model: it has no config.json"):
        check_checkpoint("~/model")
    (tmp_path / "model" / "config.json").touch()
    assert check_checkpoint("~/model") == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["", " "])
def test_a_variable_that_is_unset(name):
    with pytest.raises(ValueError, match="the name must be a folder or an id on the Hub, got nothing"):
        check_checkpoint(name)


@pytest.fixture
def endpoint(monkeypatch):
    """A Hub on this machine, which takes calls and never answers."""
    monkeypatch.setattr(hub_names.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(hub_names.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_a_hub_that_does_not_answer(endpoint, monkeypatch):
    monkeypatch.setattr(hub_names, "TIMEOUT_S", 0.1)
    with pytest.raises(ValueError, match="there is no folder me/nope, and the Hub does not answer.*timed out"):
        check_hub("there is no folder me/nope")
    endpoint.close()
    with pytest.raises(
        ValueError, match="there is no folder me/nope, and the Hub does not answer.*Connection refused"
    ):
        check_checkpoint("me/nope")
