import pytest

from layerlock_hf.utils.checkpoint_names import check_checkpoint


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
    assert check_checkpoint(name) == name
    assert check_checkpoint(tmp_path) == str(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert check_checkpoint("~/model") == str(tmp_path / "model")
