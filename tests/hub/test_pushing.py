import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from pushes import NAME, RUN, files_of, push, shown, titles

from layerlock_hf.hub.client import PushFailed
from layerlock_hf.hub.pushing import Revision, push_file, push_revisions


pytestmark = pytest.mark.usefixtures("waits")


def test_a_run_with_its_stages(hub, write):
    stages = [write("step 10", "step-10"), write("step 20", "step-20")]
    final = write("final")
    pushed = push(*stages, final)
    repository = hub.repositories[NAME]
    assert titles(hub) == ["initial commit", "final"]
    assert titles(hub, "stages") == ["initial commit", "step 10", "step 20"]
    assert shown(hub) == files_of(final)
    assert {tag: commit.id for tag, commit in repository.tags.items()} == {
        "step-10": pushed[0].commit_id,
        "step-20": pushed[1].commit_id,
    }
    assert [(each.revision, each.was_there) for each in pushed] == [(each, False) for each in (*stages, final)]
    for revision in (*stages, final):
        folder = snapshot_download(NAME, revision=revision.tag)
        assert files_of(revision).items() <= files_of(Revision(Path(folder), "")).items()


def test_what_is_there_is_left(hub, write):
    revisions = [write("step 10", "step-10"), write("step 20", "step-20"), write("final")]
    first = push(*revisions)
    hub.requests.clear()
    again = push(*revisions)
    assert [each.commit_id for each in again] == [each.commit_id for each in first]
    assert all(each.was_there for each in again)
    assert not hub.count("PUT", "/lfs/") and not hub.count("POST", "/commit/") and not hub.count("POST", "/tag/")


def test_stages_hold_nothing_of_main(hub, write):
    push(write("final", **{"model-2.safetensors": b"2"}))
    hub.repositories[NAME].write("notes.md", b"mine")
    stage = write("step 10", "step-10")
    push(stage)
    assert shown(hub, "stages") == files_of(stage)


def test_a_lost_tag_comes_back(hub, write):
    revision = write("step 10", "step-10")
    push(revision, write("step 20", "step-20"))
    lost = hub.repositories[NAME].tags.pop("step-10")
    push(revision)
    assert hub.repositories[NAME].tags["step-10"] is lost
    assert titles(hub, "stages") == ["initial commit", "step 10", "step 20"]


def test_a_tag_moves_with_what_it_names(hub, write):
    push(write("step 10", "step-10"))
    (pushed,) = push(write("step 10 again", "step-10"))
    assert hub.repositories[NAME].tags["step-10"].id == pushed.commit_id
    assert titles(hub, "stages") == ["initial commit", "step 10", "step 10 again"]


def test_main_may_go_back(hub, write):
    """Only its newest push is what users get."""
    old = write("old")
    push(old)
    push(write("new"))
    push(old)
    assert titles(hub) == ["initial commit", "old", "new", "old"]
    assert shown(hub) == files_of(old)


def test_files_that_the_folder_lacks(hub, write):
    push(write("old", **{"model-00001-of-00002.safetensors": b"1", "modeling_old.py": b"2", "stages.json": b"{}"}))
    users = {"LICENSE": b"mine", "handler.py": b"mine", ".eval_results/a.yaml": b"b: 1", "demo/app.py": b"mine"}
    for path, data in users.items():
        hub.repositories[NAME].write(path, data)
    new = write("new")
    push(new)
    assert shown(hub) == {**files_of(new), **users}


def test_what_the_user_wrote_over_a_push_stays(hub, write):
    revision = write("final")
    push(revision)
    hub.repositories[NAME].write("README.md", b"mine")
    (pushed,) = push(revision)
    assert pushed.was_there and shown(hub)["README.md"] == b"mine"


def test_offline_from_the_cache(hub, write, monkeypatch):
    revision = write("step 10", "step-10")
    push(revision)
    online = snapshot_download(NAME, revision="step-10")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert snapshot_download(NAME, revision="step-10") == online


def test_a_second_writer_in_between(hub, write):
    hub.before_commit = lambda repository: (
        setattr(hub, "before_commit", None),
        repository.write("notes.md", b"mine"),
    )
    revision = write("final")
    push(revision)
    assert titles(hub) == ["initial commit", "by hand", "final"]
    assert shown(hub) == {**files_of(revision), "notes.md": b"mine"}


def test_a_second_run_in_between(hub, write):
    settings = json.dumps({"run_id": "other"}).encode()
    hub.before_commit = lambda repository: (
        setattr(hub, "before_commit", None),
        repository.write("settings.json", settings),
    )
    with pytest.raises(PushFailed, match=r"repo_id: tester/model holds another run \(other\)"):
        push(write("final"))
    assert titles(hub) == ["initial commit", "by hand"]


OTHER_RUN = {"config.json": b"{}", "settings.json": b'{"run_id": "other"}', "model-1-of-1.safetensors": b"theirs"}
FOREIGN = {"config.json": b"{}", "pytorch_model.bin": b"theirs"}


@pytest.mark.parametrize(
    "files, run_id, held",
    [
        (OTHER_RUN, RUN, r"another run \(other\)"),
        (OTHER_RUN, None, r"another run \(other\)"),
        (FOREIGN, RUN, "a model that is not of this run"),
        ({**FOREIGN, "settings.json": b"[1]"}, RUN, "a model that is not of this run"),
        ({**FOREIGN, "settings.json": b"<html>"}, RUN, "a model that is not of this run"),
    ],
)
def test_a_repository_that_holds_something_else(hub, write, files, run_id, held):
    hub.add_repository(NAME, files)
    before = titles(hub)
    revisions = [write("step 10", "step-10"), write("final")]
    with pytest.raises(PushFailed, match=f"repo_id: {NAME} holds {held}: choose another name, or .* --replace"):
        push(*revisions, run_id=run_id)
    assert titles(hub) == before and list(hub.repositories[NAME].branches) == ["main"] and not hub.objects
    push(*revisions, run_id=run_id, replaces=True)
    assert titles(hub) == [*before, "final"]
    assert shown(hub) == {
        **{name: files[name] for name in files if name == "pytorch_model.bin"},
        **files_of(revisions[1]),
    }


def test_another_run_whose_main_is_not_there_yet(hub, write):
    push(write("step 10", "step-10"))
    with pytest.raises(PushFailed, match=f"holds another run \\({RUN}\\)"):
        push(write("final"), run_id="other")


def test_stages_of_a_run_that_was_replaced(hub, write):
    """What `main` holds counts."""
    push(write("step 10", "step-10"), write("old"))
    new = write("new", **{"settings.json": b'{"run_id": "other"}'})
    push(new, run_id="other", replaces=True)
    (pushed,) = push(new, run_id="other")
    assert pushed.was_there


def test_weights_that_come_from_no_run(hub, write):
    revision = write("converted")
    (revision.folder / "settings.json").unlink()
    push(revision, run_id=None)
    (revision.folder / "model.safetensors").write_bytes(b"others")
    push(revision, run_id=None)
    assert titles(hub)[1:] == ["converted", "converted"]
    hub.add_repository("tester/foreign", FOREIGN)
    with pytest.raises(PushFailed, match="tester/foreign holds a model that is not of this run"):
        push(revision, repo_id="tester/foreign", run_id=None)


def test_a_card_that_the_hub_refuses(hub, write):
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        push(write("final", **{"README.md": b"---\n- 1\n---\n"}))
    assert not hub.objects


def test_a_name_alone_is_of_the_user(hub, write):
    push(write("final"), repo_id="model")
    assert list(hub.repositories) == [NAME]


def test_private(hub, write):
    revision = write("final")
    push_revisions([revision], NAME, private=True, run_id=RUN)
    assert hub.repositories[NAME].private
    push_revisions([revision], NAME, private=True, run_id=RUN)
    hub.repositories[NAME].private = False
    with pytest.raises(PushFailed, match="private: tester/model exists and is public: make it private"):
        push_revisions([revision], NAME, private=True, run_id=RUN)


def test_a_folder_without_files(hub, write, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PushFailed, match="folder must hold a model, got .*nothing with no files"):
        push(write("step 10", "step-10"), Revision(tmp_path / "nothing", "final"))
    assert not hub.requests


def test_a_file_of_its_own(hub, write):
    push(write("final"))
    for content in (b"a: 1", b"a: 1", b"a: 2"):
        push_file(NAME, ".eval_results/ssv2.yaml", content, f"results {content[-1:].decode()}")
        assert shown(hub)[".eval_results/ssv2.yaml"] == content
    assert titles(hub) == ["initial commit", "final", "results 1", "results 2"]
    (pushed,) = push(write("final again"))
    assert shown(hub)[".eval_results/ssv2.yaml"] == b"a: 2"


PROGRAM = """
import sys
import threading
from pathlib import Path
from layerlock_hf.hub.pushing import Revision, push_revisions
stages = [Revision(Path(folder), Path(folder).name, tag) for folder, tag in zip(sys.argv[1:3], ["step-10", "step-20"])]
push_revisions([*stages, Revision(Path(sys.argv[3]), "final")], "tester/model", run_id="1a2b")
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after the first large file", "between commit and tag"])
def test_a_push_that_is_killed(hub, write, tmp_path, moment):
    """And started again: every revision is there once, and no file was sent twice."""
    second = b"second shard of step 20"
    stages = [write("step 10", "step-10"), write("step 20", "step-20", **{"model-2.safetensors": second})]
    final = write("final")
    arguments = [str(revision.folder) for revision in (*stages, final)]
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=environment, stderr=subprocess.DEVNULL)
    shards = {hashlib.sha256(data).hexdigest() for data in (second, b"weights of step 20")}
    if moment == "between commit and tag":
        path = ("POST", "/tag/")
        hub.before(*path, process.kill)
    else:
        path = ("PUT", "/lfs/" + hashlib.sha256(second).hexdigest())

        def kill():
            while not shards & set(hub.objects):
                threading.Event().wait(0.01)
            process.kill()

        hub.before(*path, kill)
    hub.cut(*path)
    process.wait()
    assert titles(hub) == ["initial commit"] and "step-20" not in hub.repositories[NAME].tags
    push(*stages, final)
    assert titles(hub) == ["initial commit", "final"]
    assert titles(hub, "stages") == ["initial commit", "step 10", "step 20"]
    tags = hub.repositories[NAME].tags
    assert {tag: tags[tag].title for tag in tags} == {"step-10": "step 10", "step-20": "step 20"}
    assert hub.count("PUT", "/lfs/") == len(hub.objects) + (moment == "after the first large file")
