"""`layerlock embed` and `layerlock search`, from their arguments to what they print."""

import json
import signal

import pytest

from layerlock_hf.cli import embed, search


def test_embed_and_search(videos, model, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        str(videos),
        str(out),
        "--model",
        model,
        "--window",
        "8f",
        "--depths",
        "3",
        "0.95",
        "--num_workers",
        "0",
    ]
    assert embed.main([*command, "--device", "cpu"]) == 0
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    printed = capsys.readouterr().out
    assert f"{counts['rows']} vectors of {counts['windows']} windows of 9 videos are in {out}" in printed
    assert "1 unreadable, 1 read in part: " in printed and "bad_videos*.jsonl says why" in printed

    query = str(videos / "v3.mp4")
    search.main([str(out), "--query", query, "--top", "2", "--output_dir", str(tmp_path / "found"), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "time", "video"] and lines[1].split()[:2] == ["1", "1.000"]
    assert lines[-2:] == [str(tmp_path / "found" / name) for name in ("search.png", "search.html")]
    search.main([str(out), "--query", query, "--top", "2", "--json", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    assert found["hits"][0]["video"] == query and found["depth"] == 4
    search.main([str(out), "--query", query, "--one_per_video", "--json", "--device", "cpu"])
    names = [hit["video"] for hit in json.loads(capsys.readouterr().out)["hits"]]
    assert names[0] == query and len(set(names)) == len(names) == 8

    with pytest.raises(SystemExit, match="error: .*window was '8f' there, and is '2s' now: choose another folder"):
        embed.main([str(videos), str(out), "--model", model, "--depths", "3", "0.95", "--num_workers", "0"])
    with pytest.raises(SystemExit, match="error: depth must be one of those in .*, 3, 4, got 6"):
        search.main([str(out), "--query", query, "--depth", "6"])


def test_only_bad_videos_end_with_status_1(videos, model, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.mp4").write_text("no video")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert embed.main([str(tmp_path / "bad"), str(tmp_path / "out"), "--model", model, "--num_workers", "0"]) == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "1 unreadable: " in capsys.readouterr().out


def test_refusals(videos, tmp_path):
    with pytest.raises(SystemExit, match="error: --bathc_size is not a known setting: --help lists them all"):
        embed.main([str(videos), str(tmp_path / "out"), "--model", "m", "--bathc_size", "3"])
    with pytest.raises(SystemExit, match="error: cannot load /nowhere as an encoder: there is no folder /nowhere"):
        embed.main([str(videos), str(tmp_path / "out"), "--model", "/nowhere"])
    with pytest.raises(SystemExit, match="error: .* holds no vectors: give the OUT of `layerlock embed`"):
        search.main([str(tmp_path), "--query", str(videos / "v0.mp4")])


@pytest.mark.parametrize(
    ("settings", "told"),
    [(["--model", "/nowhere"], "cannot load /nowhere"), (["--window", "0s"], "window must be")],
)
def test_a_first_command_that_is_refused_leaves_nothing(settings, told, videos, model, tmp_path):
    """But OUT itself, which goes at the end of the process if it is empty."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=f"error: {told}"):
        embed.main([str(videos), str(out), "--model", model, *settings])
    assert not list(out.rglob("*"))


def array(task, first, last, count, **others):
    """What SLURM tells a task of an array."""
    told = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, **others}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


@pytest.fixture
def set_launch(monkeypatch):
    """A function that sets the variables of a launch, and no others of this kind."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)

    def set_all(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        (array(7, 4, 8, 5), (3, 5)),
        (array(4, 0, 28, 8, STEP=4), (1, 8)),
        (array(28, 0, 28, 8, STEP=4), (7, 8)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # the script of sbatch, which is one process
        (array(7, 4, 8, 5) | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (7, 10)),
        (array(7, 4, 8, 5) | {"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
    ],
)
def test_the_share_of_a_launch(environment, share, set_launch):
    set_launch(environment)
    assert embed.share() == share


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (
            array(5, 1, 7, 3),
            "the tasks of a SLURM array must be evenly spaced, got 3 between 1 and 7: give --rank and",
        ),
        (
            {"RANK": "0"},
            "WORLD_SIZE must be a whole number of at least 1, got '': set it as the launcher does, or give",
        ),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a whole number of at least 0, got 'x': set it"),
        (array(5, 5, 6, ""), "SLURM_ARRAY_TASK_COUNT must be a whole number of at least 1, got ''"),
        (array(5, 0, 8, 3, STEP=0), "SLURM_ARRAY_TASK_STEP must be a whole number of at least 1, got '0'"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID must be a whole number of at least 0, got ''"),
    ],
)
def test_launches_that_tell_no_share(environment, told, set_launch):
    """They matter no more where the share is given."""
    set_launch(environment)
    with pytest.raises(SystemExit, match=f"error: {told}"):
        embed.main(["videos", "out", "--model", "m"])
    _, where = embed.parse(["videos", "out", "--model", "m", "--rank", "3", "--world_size", "4"])
    assert (where.rank, where.world_size) == (3, 4)


@pytest.mark.parametrize("environment", [{}, array(3, 3, 3, 1)])  # the latter repeats one task of four
def test_half_a_share_is_refused_where_the_launch_tells_another(environment, set_launch):
    set_launch(environment)
    command = ["videos", "out", "--model", "m"]
    for flag, value, other in (("world_size", 4, "rank"), ("rank", 3, "world_size")):
        told = f"error: {flag} must be [01] where --{other} is not given, got {value}: give both, or neither"
        with pytest.raises(SystemExit, match=told):
            embed.main([*command, f"--{flag}", str(value)])
    _, where = embed.parse([*command, "--world_size", "1"])
    assert (where.rank, where.world_size) == (0, 1)
