import re

import pytest
from huggingface_hub import constants
from pushes import NAME, files_of, push, shown, titles

from layerlock_hf.hub.client import NUM_TRIES, PushFailed, check_repo_id
from layerlock_hf.hub.pushing import push_file, push_revisions


pytestmark = pytest.mark.usefixtures("waits")


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/api/repos/create"),
        ("GET", "/refs"),
        ("POST", "/branch/"),
        ("GET", "/tree/"),
        ("GET", "/commits/stages"),
        ("POST", "/preupload/"),
        ("POST", "/lfs/objects/batch"),
        ("PUT", "/lfs/"),
        ("POST", "/lfs/verify/"),
        ("POST", "/validate-yaml"),
        ("POST", "/commit/stages"),
        ("POST", "/commit/main"),
        ("POST", "/tag/"),
    ],
)
@pytest.mark.parametrize("fault", ["503", "cut", "lost answer"])
def test_what_fails_in_passing(hub, write, method, path, fault):
    revisions = [write("step 10", "step-10"), write("final")]
    if fault == "503":
        hub.fail(method, path, 503)
    else:
        hub.cut(method, path, is_done=fault == "lost answer")
    push(*revisions)
    assert [each.times for each in hub.faults] == [0]
    assert titles(hub) == ["initial commit", "final"] and titles(hub, "stages") == ["initial commit", "step 10"]
    assert shown(hub) == files_of(revisions[1]) and shown(hub, "stages") == files_of(revisions[0])
    assert hub.repositories[NAME].tags == {"step-10": hub.repositories[NAME].commit("stages")}


def test_what_it_holds_is_read_again(hub, write):
    push(write("old"))
    hub.cut("GET", "/resolve/")
    push(write("new"))
    assert [each.times for each in hub.faults] == [0] and titles(hub) == ["initial commit", "old", "new"]


def test_a_lost_answer_and_a_second_writer(hub, write):
    """What the user wrote over the push in between stays."""

    def write_after_commit():
        hub.before("GET", "/commits/", lambda: hub.repositories[NAME].write("README.md", b"mine"))

    hub.before("POST", "/commit/", write_after_commit)
    hub.cut("POST", "/commit/", is_done=True)
    push(write("final"))
    assert titles(hub) == ["initial commit", "final", "by hand"] and shown(hub)["README.md"] == b"mine"


def test_a_file_that_is_gone(hub, write, waits):
    revision = write("final")
    hub.before("POST", "/lfs/objects/batch", (revision.folder / "model.safetensors").unlink)
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        push(revision)
    assert not waits and titles(hub) == ["initial commit"]


def test_a_tag_made_by_another_in_between(hub, write):
    def tag():
        hub.repositories[NAME].tags["step-10"] = hub.repositories[NAME].commit("stages")

    hub.before("POST", "/tag/", tag)
    push(write("step 10", "step-10"))
    assert hub.repositories[NAME].tags["step-10"].title == "step 10"


def test_how_long_it_waits(hub, write, waits, caplog):
    hub.fail("POST", "/commit/", 500, times=2)
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "70"})
    hub.fail("POST", "/commit/", 429, headers={"RateLimit": '"api";r=0;t=55'})
    push(write("final"))
    assert waits == [1, 2, 70, 55]
    assert "pushing final failed (HfHubHTTPError: Server error '500 " in caplog.text
    assert "try 2 of 6 in 1 s" in caplog.text


def test_what_goes_on_failing(hub, write, waits):
    hub.fail("POST", "/commit/", 502, times=NUM_TRIES)
    revision = write("final")
    with pytest.raises(PushFailed, match=r"pushing final failed 6 times, .*'502 .* the same command again"):
        push(revision)
    assert waits == [1, 2, 4, 8, 16]
    hub.requests.clear()
    push(revision)
    assert titles(hub) == ["initial commit", "final"] and not hub.count("PUT", "/lfs/")


def test_an_address_for_uploads_that_has_expired(hub, write):
    hub.fail("PUT", "/lfs/", 403)
    push(write("final"))
    assert titles(hub) == ["initial commit", "final"]


def test_a_hub_that_is_not_there(hub, write, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushFailed, match="creating it failed 6 times, .*Connection refused.* check the network"):
        push(write("final"))


def test_offline(hub, write, monkeypatch, waits):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushFailed, match=f"repo_id: {NAME}: HF_HUB_OFFLINE forbids asking the Hub: unset it"):
        push(write("final"))
    assert not waits and not hub.requests


@pytest.mark.parametrize(
    "token, name, message",
    [
        ("", NAME, "token: there is none: log in with `hf auth login`, or set HF_TOKEN"),
        ("wrong", NAME, "the token is not valid: log in again .*401"),
        ("wrong", "model", "the token is not valid: log in again .*401"),
        ("read", NAME, "the token may not write there: give it that right, or choose another namespace .*403"),
        ("write", "other/model", "the token may not write there: .*namespace .*other"),
    ],
)
def test_tokens(hub, write, monkeypatch, waits, token, name, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PushFailed, match=message):
        push(write("final"), repo_id=name)
    assert not waits and not hub.repositories


def test_a_token_that_is_given(hub, write, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    push_revisions([write("final")], NAME, token="write")
    assert titles(hub) == ["initial commit", "final"]


def test_a_repository_that_may_be_read_only(hub, write, monkeypatch):
    hub.add_repository(NAME)
    monkeypatch.setenv("HF_TOKEN", "read")
    with pytest.raises(PushFailed, match="the token may not write there: "):
        push(write("final"))
    assert titles(hub) == ["initial commit"]


def test_what_is_gone(hub, write):
    hub.add_repository(NAME)
    hub.before("POST", "/commit/", hub.repositories.clear)
    with pytest.raises(PushFailed, match=f"repo_id: {NAME}: there is no such thing on the Hub, or .* see it: .*404"):
        push(write("final"))


@pytest.mark.parametrize("name", ["a/b/c", "", "-a", "a--b", "a b", "org/"])
def test_bad_names(name):
    with pytest.raises(PushFailed, match=re.escape(f"repo_id must be NAME or NAMESPACE/NAME, got {name}: ")):
        check_repo_id(name)


def test_a_name_that_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PushFailed, match="repo_id must be a name on the Hub, got runs/demo, which is a local folder"):
        check_repo_id("runs/demo")


@pytest.mark.parametrize("fault", ["503", "lost answer"])
def test_a_file_of_its_own_that_fails_in_passing(hub, fault):
    hub.add_repository(NAME)
    if fault == "503":
        hub.fail("POST", "/commit/", 503)
    else:
        hub.cut("POST", "/commit/", is_done=True)
    push_file("model", "a.yaml", b"a: 1", "results")
    assert titles(hub) == ["initial commit", "results"]
