"""`layerlock env`: what there is, what is missing, and the command that mends it."""

import importlib

from layerlock_hf.cli import env


def test_everything_is_named(capsys):
    status = env.main([])
    text = capsys.readouterr().out
    assert status == (0 if "All that is required is there." in text else 1)
    for name in (
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "safetensors",
        "huggingface-hub",
        "torchcodec",
        "av",
    ):
        assert f"\n  {name} " in text
    assert "cores" in text and ("cuda:0" in text or "no GPU" in text)


def test_names_of_packages_keep_their_digits(monkeypatch):
    lines = ["jinja2", "torch>=2.11", "fsspec[http]", "huggingface-hub<3,>=1.31", 'ruff; extra == "dev"']
    monkeypatch.setattr(env, "requires", lambda name: lines)
    assert env.required() == ["jinja2", "torch", "fsspec", "huggingface-hub"]


def test_what_is_missing_comes_with_its_command(capsys, monkeypatch):
    load = importlib.import_module

    def broken(name):
        if name == "torchcodec.decoders":
            raise RuntimeError("Could not load libtorchcodec.\nLikely causes:\n ...")
        return load(name)

    monkeypatch.setattr(env.importlib, "import_module", broken)
    monkeypatch.setattr(env.shutil, "which", lambda name: None)
    versions = env.version_of
    monkeypatch.setattr(env, "version_of", lambda name: None if name == "safetensors" else versions(name))
    assert env.main([]) == 1
    text, commands = capsys.readouterr().out.split("install them with:")
    assert "torchcodec       cannot be loaded: Could not load libtorchcodec." in text
    assert "safetensors      missing" in text
    assert "pip install safetensors" in commands and "apt-get install ffmpeg" in commands
