"""Cards of folders: that they say what the files say, and that their code runs."""

import doctest
import re
import shutil
from pathlib import Path

import pytest
import torch
from hub_folders import CLASSES, DEPTH, OURS, SETTINGS, STAGES, THEIRS, save
from huggingface_hub import ModelCard

from layerlock_hf import (
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
    LayerLockViTModel,
    TransformersEncoder,
    TransformersEncoderForDepthEstimation,
    TransformersEncoderForVideoClassification,
)
from layerlock_hf.hub import words
from layerlock_hf.hub.cards import card_of


ROOT = Path(__file__).resolve().parents[2]
RESULTS = {
    LayerLockViTForVideoClassification: CLASSES,
    LayerLockViTForDepthEstimation: DEPTH,
    TransformersEncoderForVideoClassification: CLASSES,
    TransformersEncoderForDepthEstimation: DEPTH,
}
TAGS = {"VideoClassification": "video-classification", "DepthEstimation": "depth-estimation"}
ALL = pytest.mark.parametrize("kind", OURS + THEIRS, ids=lambda kind: kind.__name__)


def save_whole(folder, kind, sizes, **changes):
    """A folder with all the files that there can be of a model of this class."""
    settings = SETTINGS | ({"base_model": "org/videomae-tiny"} if kind in THEIRS else {}) | changes
    files = {"settings": settings}
    if kind in (LayerLockViTModel, LayerLockViTForPretraining):
        files["stages"] = STAGES
    if kind in RESULTS:
        files["results"] = RESULTS[kind]
    return save(folder, kind, sizes, **files)


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def snippets(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


def rows(card: str) -> dict[str, str]:
    """The tables of two columns."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card, re.MULTILINE))


@ALL
def test_the_hub_accepts_the_card(kind, tmp_path, tiny_sizes):
    save_whole(tmp_path, kind, tiny_sizes)
    card = card_of(tmp_path)
    loaded = ModelCard(card)
    assert str(loaded) == card
    data = loaded.data
    assert (data.library_name, data.tags[:2]) == ("transformers", ["layerlock", "video"])
    tag = next((tag for name, tag in TAGS.items() if kind.__name__.endswith(name)), "feature-extraction")
    assert data.pipeline_tag == tag
    assert (data.eval_results is not None) == (kind in RESULTS)
    assert data.license == ("other" if kind in THEIRS else "apache-2.0")
    assert data.base_model == ("org/videomae-tiny" if kind in THEIRS else None)


@ALL
def test_nothing_is_missing_and_nothing_private_is_told(kind, tmp_path, tiny_sizes):
    model = save_whole(tmp_path, kind, tiny_sizes)
    (tmp_path / "LICENSE").touch()
    card = card_of(tmp_path)
    assert not re.search(
        r"\b(None|nan|null|Undefined)\b|[{}]{2}|/home|/scratch|secret|key=1|example\.org/list\.csv\?", body(card)
    )
    for link in re.findall(r"\]\(([^)\s]+)\)", body(card)):
        assert "://" in link or (tmp_path / link).exists(), link
    assert rows(card)["parameters"].startswith(f"{model.num_parameters():,}")
    assert body(card).lstrip().startswith("# layerlock-tiny\n")  # no notice: nothing is missing
    assert "\n\n\n" not in card


@ALL
def test_a_model_saved_alone_says_that_nothing_is_recorded(kind, tmp_path, tiny_sizes):
    save(tmp_path, kind, tiny_sizes, with_processor=False)
    card = card_of(tmp_path)
    assert body(card).lstrip().startswith("**Nothing is recorded about how these weights were trained.**\n")
    assert not re.search(r"\b(None|nan)\b", body(card))
    for heading in ("Stages of training", "Training data", "Training", "Evaluation"):
        assert f"## {heading}\n" not in card
    assert str(ModelCard(card)) == card


def test_the_card_depends_on_the_files_alone(tmp_path, tiny_sizes):
    save_whole(tmp_path / "a", LayerLockViTForPretraining, tiny_sizes)
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere")
    card = card_of(tmp_path / "a")
    assert card_of(tmp_path / "elsewhere") == card == card_of(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text(card)
    assert card_of(tmp_path / "a") == card


def test_what_a_run_left_is_in_the_card(tmp_path, tiny_sizes):
    save_whole(tmp_path, LayerLockViTForPretraining, tiny_sizes)
    card, found = card_of(tmp_path), rows(card_of(tmp_path))
    assert "| 1 | 600 | 2 | layer_2 | 37,000 |" in card
    assert found["steps of the optimizer"] == "1,200 of 1,200, 19,200 clips in all"
    assert found["hardware"] == "2 × NVIDIA H200; 16 CPU cores"
    assert found["time"] == "5.2 minutes"
    assert found["cost"].startswith("1.20 × 10¹⁵ floating-point operations")
    assert found["run"] == "5eed"
    assert found["clip"].startswith("4 frames of 16 × 16 pixels, one in 2 of the video's")
    assert "1,500 videos from “videos” and “https://example.org/list.csv”." in card
    assert "layerlock pretrain --config demo --train_data videos --output_dir=run_7\n" in card
    assert card.count("@article") == 2 and "2412.15212" in card


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        (
            {"progress": {"step": 300, "max_steps": 1200}},
            "This is not the final model but the one at step 300 of 1,200.",
        ),
        (
            {"progress": {"step": 600, "max_steps": 1200}, "stage": 1},
            "This is not the final model but the encoder as it was at step 600 of 1,200, when stage 1 began. Its "
            "first 2 layers learned no more after that.",
        ),
    ],
)
def test_the_first_line_says_what_is_missing(changes, notice, tmp_path, tiny_sizes):
    save_whole(tmp_path, LayerLockViTModel, tiny_sizes, **changes)
    assert body(card_of(tmp_path)).lstrip().splitlines()[0] == f"**{notice}**"


def test_weights_that_were_converted(tmp_path, tiny_sizes):
    settings = {"converted_from": "/data/scaling4d_dist_b_depth.npz"}
    save(tmp_path, LayerLockViTForDepthEstimation, tiny_sizes, settings=settings)
    card = card_of(tmp_path)
    assert ModelCard(card).data.license == "cc-by-4.0"
    assert rows(card)["converted from"] == "scaling4d\\_dist\\_b\\_depth.npz, as it was released"
    assert card.index("2412.15212") < card.index("2509.10156")


def test_whose_licence_applies_to_others_encoders(tmp_path, tiny_sizes):
    save_whole(tmp_path / "named", TransformersEncoder, tiny_sizes)
    assert "[org/videomae-tiny](https://huggingface.co/org/videomae-tiny), and the licence of" in card_of(
        tmp_path / "named"
    )
    save(tmp_path / "unnamed", TransformersEncoder, tiny_sizes)
    card = card_of(tmp_path / "unnamed")
    assert ModelCard(card).data.license == "other" and "somebody else's" in card
    save_whole(tmp_path / "wrong", TransformersEncoder, tiny_sizes, base_model="/home/ann/videomae")
    with pytest.raises(ValueError, match="/home/ann/videomae"):
        card_of(tmp_path / "wrong")


def test_the_code_of_a_repository_is_run_only_where_it_is(tmp_path, tiny_sizes):
    save_whole(tmp_path, LayerLockViTModel, tiny_sizes, revision="stage-1")
    call = '.from_pretrained("org/layerlock-tiny", revision="stage-1", trust_remote_code=True)'
    assert card_of(tmp_path).count(call) == 2
    for path in tmp_path.glob("configuration_*.py"):
        path.unlink()
    assert "trust_remote_code" not in card_of(tmp_path)


def test_weights_in_shards_are_counted(tmp_path, tiny_sizes):
    model = save(tmp_path, LayerLockViTModel, tiny_sizes)
    card = card_of(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    assert card_of(tmp_path) == card


@ALL
def test_snippets_run_as_they_stand(kind, video, tmp_path, tiny_sizes):
    save_whole(tmp_path, kind, tiny_sizes, repo_id=".")
    codes = snippets(card_of(tmp_path))
    assert len(codes) == 3  # where the package is, where it is not, and the task
    for code in codes:
        exec(code, names := {})
        found = {"features", "metres", "loss", "stage", "classify"} & names.keys()
        assert found
        assert all(names[name].isfinite().all() for name in found & {"features", "loss"})


@pytest.mark.parametrize(
    ("stage", "settings", "told"),
    [
        ({"target": "pixels", "num_frozen": 0}, {"normalize_pixels": True, "pixel_loss": "l1"}, 'loss="l1"'),
        ({"target": "layer_1", "num_frozen": 2}, {"mask": "random", "mask_ratio": 0.5}, "Latents(1)"),
        (
            {"target": "pixels", "num_frozen": 0},
            {"mask": "multiblock", "mask_blocks": ["1x0.3", "2x0.2"], "mask_group_size": 2},
            'mask_blocks=["1x0.3", "2x0.2"]',
        ),
        ({"target": "teacher_layer_6", "num_frozen": 0}, {}, "num_labels=10"),
        ({"target": "pixels + layer_2", "num_frozen": 2}, {}, "num_labels=10"),
    ],
)
def test_the_loss_of_the_last_stage(stage, settings, told, video, tmp_path, tiny_sizes, capsys):
    stages = [{"start": 0, "trainable_parameters": 1} | stage]
    settings = {"settings": settings}
    save(tmp_path, LayerLockViTForPretraining, tiny_sizes, with_processor=False, stages=stages, settings=settings)
    code = snippets(card_of(tmp_path))[-1]
    assert told in code
    exec(code, names := {})
    loss = names.get("loss", torch.tensor(1.0))
    assert loss.isfinite() and ("tensor(" in capsys.readouterr().out or "loss" in names)


def test_a_run_that_was_stopped_shows_the_loss_of_the_stage_it_was_in(tmp_path, tiny_sizes):
    for step, target in ((0, "Pixels"), (600, "Pixels"), (601, "Latents")):
        progress = {"progress": {"step": step, "max_steps": 1200}}
        save_whole(tmp_path, LayerLockViTForPretraining, tiny_sizes, **progress)
        assert f"target={target}(" in snippets(card_of(tmp_path))[-1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", '{"model_type": "bert", "architectures": ["BertModel"]}', "got BertModel of the type bert"),
        ("model.safetensors", None, "no model.safetensors"),
        ("stages.json", "[", "stages.json is not valid JSON"),
    ],
)
def test_broken_folders_are_refused(file, content, message, tmp_path, tiny_sizes):
    save_whole(tmp_path, LayerLockViTModel, tiny_sizes)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        card_of(tmp_path)


def test_words():
    assert doctest.testmod(words).failed == 0 < doctest.testmod(words).attempted
    assert words.public_name(r"C:\\Users\ann\videos") == "videos"
    assert words.public_name("s3://bucket/videos") == "s3://bucket/videos"
    assert words.public_command("run --out '/home/ann/my run' ~/b -x") == "run --out 'my run' b -x"
    assert words.duration(3) == "3 seconds" and words.duration(3e5) == "83.3 hours"
    assert words.cell("a|b\n<i>_*") == "a\\|b \\<i\\>\\_\\*"


def test_the_licence_of_exports_is_that_of_the_project():
    assert (ROOT / "layerlock_hf" / "hub" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
