"""Complete checkpoints, and what is not one. The processes that write them are killed in test_crashes.py."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from crash_run import At, assert_equal, make

from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training import checkpoints
from layerlock_hf.training.checkpoints import (
    ASIDE,
    MANIFEST,
    CheckpointNotWritten,
    fault,
    keep_newest,
    newest_complete,
    publish,
)
from layerlock_hf.training.run_file import CheckpointRefused


def write(output_dir, step):
    aside = output_dir / ASIDE / f"checkpoint-{step}"
    (aside / "shards").mkdir(parents=True)
    (aside / "weights").write_bytes(b"w" * 100)
    (aside / "shards" / "0").write_bytes(bytes(range(256)))
    folder = output_dir / f"checkpoint-{step}"
    publish(aside, folder)
    return folder


def test_published_is_complete_and_nothing_is_left_aside(tmp_path):
    folder = write(tmp_path, 5)
    assert fault(folder) is None
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {"weights", "shards/0"}
    assert os.listdir(tmp_path) == ["checkpoint-5"]


def test_an_older_one_of_the_same_step_is_replaced(tmp_path):
    folder = write(tmp_path, 5)
    (folder / "stale").write_text("")
    write(tmp_path, 5)
    assert not (folder / "stale").exists() and fault(folder) is None


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "never completed"),
    "torn manifest": (lambda folder: (folder / MANIFEST).write_text('{"weights"'), f"{MANIFEST} cannot be read"),
    "missing": (lambda folder: (folder / "shards" / "0").unlink(), "it has no shards/0"),
    "truncated": (lambda folder: os.truncate(folder / "weights", 99), "weights has 99 bytes instead of 100"),
    "flipped bit": (lambda folder: flip_a_bit(folder / "weights"), "the contents of weights have changed"),
}


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link"])
def test_a_manifest_that_leads_outside_is_refused(tmp_path, name):
    folder = write(tmp_path, 5)
    (tmp_path / "secret").write_text("")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / MANIFEST).write_text(json.dumps({"files": {name: [0, 0]}}))
    assert f"names {name!r}, which lies outside" in fault(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": {"weights": 3}}', '{"files": {"weights": ["x", 1]}}', "{"])
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, text):
    folder = write(tmp_path, 5)
    (folder / MANIFEST).write_text(text)
    assert "cannot be read" in fault(folder)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_one_is_named_and_the_next_is_taken(tmp_path, caplog, name):
    damage, reason = DAMAGE[name]
    write(tmp_path, 9)
    older = write(tmp_path, 10)
    newest = write(tmp_path, 100)
    assert newest_complete(tmp_path) == newest
    damage(newest)
    assert newest_complete(tmp_path) == older
    assert f"skipped {newest}: " in caplog.text and reason in caplog.text


def test_what_was_being_written_is_named_and_skipped(tmp_path, caplog):
    older = write(tmp_path, 3)
    (tmp_path / ASIDE / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_complete(tmp_path) == older
    assert "checkpoint-4: it was being written when the run ended" in caplog.text
    assert newest_complete(tmp_path / "nothing") is None


def test_a_disk_that_cannot_be_read(tmp_path, monkeypatch):
    older, newest = write(tmp_path, 1), write(tmp_path, 2)
    original = checkpoints._fingerprint

    def read(path):
        if newest in path.parents:
            raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(checkpoints, "_fingerprint", read)
    assert newest_complete(tmp_path) == older
    assert "Input/output error" in fault(newest)


def test_what_was_written_last_counts_and_not_the_highest_step(tmp_path):
    """As after a run that was resumed from an older checkpoint."""
    for step in (10, 20, 30, 15):
        write(tmp_path, step)
    (tmp_path / "checkpoint-30" / MANIFEST).write_text("{")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-15"
    keep_newest(tmp_path, 2)
    assert {path.name for path in tmp_path.glob("*")} == {"checkpoint-15", "checkpoint-20"}


def test_sigterm_is_given_back_when_training_fails(tmp_path):
    trainer, before = make(tmp_path, max_steps=2), signal.getsignal(signal.SIGTERM)

    def fail():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ZeroDivisionError

    trainer.add_callback(At(1, 0, fail))
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("name", ["save_on_each_node", "save_only_model"])
def test_checkpoints_that_no_run_could_go_on_from_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is not supported"):
        make(tmp_path, **{name: True})


def test_the_trainer_keeps_the_newest_and_resumes_from_a_complete_one(tmp_path, caplog):
    make(tmp_path, max_steps=5, save_total_limit=2).train()
    assert {path.name for path in tmp_path.glob("*")} == {"checkpoint-4", "checkpoint-5"}
    flip_a_bit(tmp_path / "checkpoint-5" / "optimizer.pt")
    with pytest.raises(CheckpointRefused, match="checkpoint-5 is not complete: the contents of optimizer.pt"):
        make(tmp_path, max_steps=5).train(str(tmp_path / "checkpoint-5"))
    for wanted in (True, "auto"):
        trainer = make(tmp_path, max_steps=5, save_strategy="no")
        trainer.train(wanted)
        assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2, 3, 4, 5]
    assert f"resuming from {tmp_path / 'checkpoint-4'}" in caplog.text


def test_auto_begins_anew_where_there_is_nothing_and_true_does_not(tmp_path):
    with pytest.raises(ValueError, match="there is no complete checkpoint in"):
        make(tmp_path, max_steps=2).train(True)
    trainer = make(tmp_path, max_steps=2, save_strategy="no")
    trainer.train("auto")
    assert trainer.state.global_step == 2


def test_a_failed_save_says_so_and_leaves_what_there_was(tmp_path, monkeypatch):
    trainer = make(tmp_path, max_steps=5)
    original = torch.save

    def full(value, path, *args, **kwargs):
        if "checkpoint-3" in str(path):
            raise OSError(28, "No space left on device")
        original(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointNotWritten,
        match=r"checkpoint-3 could not be written, with .* left on the disk: .*No space left on device",
    ):
        trainer.train()
    assert {path.name for path in tmp_path.glob("*")} == {"checkpoint-1", "checkpoint-2"}
    assert fault(tmp_path / "checkpoint-2") is None


def weights_of(folder):
    return LayerLockViTForPretraining.from_pretrained(folder).state_dict()


def test_a_model_replaces_one_of_more_files(tmp_path):
    trainer = make(tmp_path)
    trainer.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    trainer.save_model()
    assert [path.name for path in tmp_path.glob("model*.safetensors*")] == ["model.safetensors"]
    assert not (tmp_path / ASIDE).exists()
    assert_equal(weights_of(tmp_path), trainer.model.state_dict())


def test_a_model_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    trainer.save_model()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*")}
    original = LayerLockViTForPretraining.save_pretrained

    def full(model, folder, *args, **kwargs):
        original(model, folder, *args, **kwargs)
        os.truncate(Path(folder) / "model.safetensors", 1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LayerLockViTForPretraining, "save_pretrained", full)
    with pytest.raises(CheckpointNotWritten, match=r"the model could not be written, with .* No space left on device"):
        trainer.save_model()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*")} == before
