"""Shared by the tests of the Hub: a Hub on this machine, which this process takes for huggingface.co."""

import json
import time
from pathlib import Path

import pytest
from hub_server import HubServer, serve
from huggingface_hub import close_session, constants, hf_api
from pushes import RUN
from transformers.utils import hub as transformers_hub

from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.hub.pushing import Revision


@pytest.fixture
def hub(tmp_path, monkeypatch) -> HubServer:
    """An empty Hub, asked with a token that may write. `hub.environment(home)` is for other processes."""
    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)  # of functions such as `huggingface_hub.create_repo`
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # which keeps the address that it was made with
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", "write")
        yield server
        close_session()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that were to be waited, and were not."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def write(tmp_path):
    """A function that writes the folder of a revision. What it holds differs by its name only."""

    def write(name: str, tag: str | None = None, **more: bytes) -> Revision:
        files = {
            "README.md": b"---\nlicense: apache-2.0\n---\n" + name.encode(),
            "config.json": b"{}",
            "settings.json": json.dumps({"run_id": RUN}).encode(),
            "model.safetensors": b"weights of " + name.encode(),
            "empty.bin": b"",
        }
        folder = tmp_path / "export" / name
        folder.mkdir(parents=True)
        for path, data in {**files, **more}.items():
            (folder / path).write_bytes(data)
        return Revision(folder, name, tag)

    return write


@pytest.fixture
def video(tmp_path, monkeypatch) -> Path:
    """A file `video.mp4` in the current folder, which is `tmp_path`."""
    write_procedural_dataset(tmp_path / "data", 1, num_frames=12, image_size=32, progress=False)
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "data" / "videos" / "000000.mp4").rename(tmp_path / "video.mp4")
