"""Repositories load over HTTP where the package is missing, and where it is, and from the cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hub_folders import save
from transformers import AutoConfig
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from layerlock_hf import (
    LayerLockVideoProcessor,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
    TransformersEncoderForDepthEstimation,
    TransformersEncoderForVideoClassification,
    export,
)
from layerlock_hf.hub.pushing import Revision, push_revisions


PROGRAM = Path(__file__).with_name("without_package.py")
# Repository -> what it holds, and the Auto classes and pipelines that it serves
REPOSITORIES = {
    "pretrained": (LayerLockViTForPretraining, ["AutoModel", "AutoModelForPreTraining", "AutoVideoProcessor"]),
    "classes": (
        LayerLockViTForVideoClassification,
        ["AutoModel", "AutoModelForVideoClassification", "AutoVideoProcessor", "video-classification"],
    ),
    "depth": (
        LayerLockViTForDepthEstimation,
        ["AutoModel", "AutoModelForDepthEstimation", "AutoVideoProcessor", "video-depth-estimation"],
    ),
    "videomae-classes": (
        TransformersEncoderForVideoClassification,
        ["AutoModel", "AutoModelForVideoClassification", "AutoVideoProcessor", "video-classification"],
    ),
    "videomae-depth": (
        TransformersEncoderForDepthEstimation,
        ["AutoModel", "AutoModelForDepthEstimation", "AutoVideoProcessor", "video-depth-estimation"],
    ),
}
TASKS = [(f"org/{name}", auto_class) for name, (_, served) in REPOSITORIES.items() for auto_class in served]
TASKS += [("org/saved", auto_class) for auto_class in REPOSITORIES["pretrained"][1]]  # by `push_to_hub` of the model


def answer_here(name: str, auto_class: str, video: Path):
    """What `without_package.py` answers, with the package and without the flag."""
    clip = torch.linspace(0, 1, 4 * 3 * 16 * 16).reshape(1, 4, 3, 16, 16)
    if auto_class == "AutoVideoProcessor":
        return AutoVideoProcessor.from_pretrained(name)(str(video)).pixel_values_videos
    if auto_class in ("video-classification", "video-depth-estimation"):
        said = transformers.pipeline(auto_class, model=name)(str(video))
        return (
            said["predicted_depth"] if isinstance(said, dict) else sorted((one["label"], one["score"]) for one in said)
        )
    model = getattr(transformers, auto_class).from_pretrained(name).eval()
    with torch.no_grad():
        return (model.base_model if auto_class == "AutoModelForPreTraining" else model)(clip)[0]


def answers_elsewhere(tasks, video: Path, folder: Path, environment: dict) -> list:
    """The same from a process that has no package."""
    tasks = [{"name": name, "auto_class": auto_class} for name, auto_class in tasks]
    (folder / "tasks.json").write_text(json.dumps({"video": str(video), "tasks": tasks}))
    command = [sys.executable, str(PROGRAM), str(folder / "tasks.json"), str(folder / "results.pt")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(folder / "results.pt")


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, equal_nan=True)
    else:
        assert [label for label, _ in one] == [label for label, _ in other]
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-6)


@pytest.mark.slow
def test_repositories_load_with_and_without_the_package_and_from_the_cache(hub, tmp_path, tiny_sizes, video):
    for name, (kind, _) in REPOSITORIES.items():
        save(tmp_path / "models" / name, kind, tiny_sizes)
        export(tmp_path / "models" / name, tmp_path / "exports" / name, repo_id=f"org/{name}")
        push_revisions([Revision(tmp_path / "exports" / name, "model")], f"org/{name}")
    LayerLockViTForPretraining.from_pretrained(tmp_path / "models" / "pretrained").push_to_hub("org/saved")
    LayerLockVideoProcessor.from_pretrained(tmp_path / "models" / "pretrained").push_to_hub("org/saved")
    expected = [answer_here(name, auto_class, video) for name, auto_class in TASKS]
    environment = os.environ | hub.environment(tmp_path / "home")
    for variables in (environment, environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        found = answers_elsewhere(TASKS, video, tmp_path, variables)
        for task, one, other in zip(TASKS, expected, found, strict=True):
            try:
                assert_same(one, other)
            except AssertionError as error:
                raise AssertionError(f"{task}: {error}") from error


@pytest.mark.slow
def test_a_model_that_was_loaded_with_its_code_saves_the_same(hub, tmp_path, tiny_sizes):
    save(tmp_path / "model", LayerLockViTForDepthEstimation, tiny_sizes)
    export(tmp_path / "model", tmp_path / "export")
    push_revisions([Revision(tmp_path / "export", "model")], "org/depth")
    program = (
        f"import sys; sys.argv[:] = ['x']; exec(open({str(PROGRAM)!r}).read().partition('if __name__')[0])\n"
        "from transformers import AutoModelForDepthEstimation as Auto\n"
        "Auto.from_pretrained('org/depth', trust_remote_code=True).save_pretrained('again')\n"
        "AutoVideoProcessor.from_pretrained('org/depth', trust_remote_code=True).save_pretrained('again')\n"
    )
    environment = os.environ | hub.environment(tmp_path / "home")
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=200, cwd=tmp_path)
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert again == {name: (tmp_path / "export" / name).read_bytes() for name in again}
    assert {path.name for path in (tmp_path / "export").iterdir()} - set(again) == {"README.md", "LICENSE"}


def test_the_package_does_not_ask_for_trust(tmp_path, tiny_sizes):
    """Transformers would, if a configuration told of the pipeline that comes with it."""
    save(tmp_path, LayerLockViTForDepthEstimation, tiny_sizes)
    config = AutoConfig.from_pretrained(tmp_path)
    assert not hasattr(config, "custom_pipelines") and not hasattr(config, "auto_map")
    shutil.rmtree(tmp_path)
    config.save_pretrained(tmp_path)
    assert {"auto_map", "custom_pipelines"} <= json.loads((tmp_path / "config.json").read_text()).keys()
