"""The commands of the guides, run one after the other as a reader types them, on a run of the demo of a few steps."""

import csv
import glob
import shlex
import sys
from pathlib import Path

import pytest
from pages import ROOT, shell_lines

from layerlock_hf.cli.main import main
from layerlock_hf.recipes import load_recipe
from layerlock_hf.recipes.settings import flags_of
from layerlock_hf.recipes.shortening import shortened


PAGES = (
    *("quickstart", "data", "embed", "evaluation", "analysis", "export"),
    *("health", "report", "cost", "when_to_freeze"),
)
STEPS = 20
# What makes them short, behind what a page says: the last of two values counts
SHORT = {
    "demo": ["--max_steps", "12", "--num_videos", "16"],
    "readout": ["--num_examples", "32", "--warmup_steps", "1"],
}
# Lines that a parser alone reads, in tests/test_docs_commands.py, by what is in them
NOT_RUN = {
    "--num_videos 32": "the next line runs in short",
    "torchrun": "tests/embedding",
    "accelerate launch": "tests/embedding",
    "--world_size": "tests/embedding",
    "4ds-g-layerlock": "needs its GPUs",
    "small-layerlock": "needs a GPU",
    "ssv2": "needs data from elsewhere",
    "--schedule auto": "tests/training/test_freezing.py",
    "convergence": "tests/pretraining/test_convergence.py",
    "pip": "pip's own",
}
PLACES = {"VIDEOS": "videos", "/path/to/videos": "videos", "runs/4ds-g": "runs/mine"}


def short(program: str, arguments: list[str]) -> list[str]:
    if program == "pretrain":
        recipe = load_recipe(arguments[arguments.index("--config") + 1])
        return flags_of({**shortened(recipe, STEPS), "save_steps": 4, "dataloader_num_workers": 0})
    return SHORT.get(program, [])


def run(words: list[str]):
    program, *arguments = (PLACES.get(word, word) for word in words[1:])
    typed = [place for word in arguments for place in (sorted(glob.glob(word)) if "*" in word else [word])]
    try:
        main([program, *typed, *short(program, arguments)])
    except SystemExit as end:
        if (program, end.code) != ("health", 1):  # which so short a run is not
            raise


@pytest.mark.slow
def test_the_guides_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    for page in PAGES:
        for words in shell_lines(ROOT / "docs" / f"{page}.md"):
            line = shlex.join(words)
            if any(part in line for part in NOT_RUN):
                continue
            print(f"\n$ {line}  # {page}", flush=True)
            run(words)
            if words[1] == "demo":
                own_videos()


def own_videos():
    """What a reader has: videos, and labels for some."""
    Path("videos").symlink_to("runs/demo/data/train/videos")
    with open("labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        rows.writerows([f"videos/{n:06d}.mp4", n % 2, "test" if n > 10 else "train"] for n in range(16))
