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
    assert "1 cannot be read, 1 were read in part: bad_videos*.jsonl says why" in printed

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
    assert "1 cannot be read" in capsys.readouterr().out


def test_refusals(videos, tmp_path):
    with pytest.raises(SystemExit, match="error: --bathc_size is not a known setting: --help lists them all"):
        embed.main([str(videos), str(tmp_path / "out"), "--model", "m", "--bathc_size", "3"])
    with pytest.raises(SystemExit, match="error: cannot load /nowhere as an encoder: there is no folder /nowhere"):
        embed.main([str(videos), str(tmp_path / "out"), "--model", "/nowhere"])
    with pytest.raises(SystemExit, match="error: .* holds no vectors: give the OUT of `layerlock embed`"):
        search.main([str(tmp_path), "--query", str(videos / "v0.mp4")])


ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "5"}


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        (ARRAY, (3, 5)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # the script of sbatch, which is one process
        (ARRAY | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (7, 10)),
        (ARRAY | {"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
    ],
)
def test_the_share_of_a_launch(environment, share, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert embed.share() == share
