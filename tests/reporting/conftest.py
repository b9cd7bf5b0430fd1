"""Short runs of pretraining, and the pages that are written of them."""

import html
import re
import shutil
from pathlib import Path

import pytest
from runs import pretrain, write_recipe

from layerlock_hf.reporting import report


@pytest.fixture(scope="session")
def finished(tiny_sizes, tmp_path_factory) -> Path:
    """The folder of a finished run of three stages, two steps each, that has kept them. Tests leave it as it is; its
    videos are in `data/videos` beside it."""
    folder = tmp_path_factory.mktemp("reported")
    return pretrain(write_recipe(folder, tiny_sizes, diagnostics_steps=1), folder / "run")


@pytest.fixture(scope="session")
def videos(finished) -> str:
    return str(finished.parent / "data" / "videos")


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Page:
    """What a page holds.

    Attributes:
        source: HTML.
        missing: section -> why it cannot be shown.
    """

    def __init__(self, path: Path):
        self.source = path.read_text(encoding="utf-8")
        parts = re.findall(r'<section id="(\w+)">(.*?)</section>', self.source, re.DOTALL)
        self.parts = {name: part for name, part in parts}
        told = {name: re.search(r'<p class="missing">Not here: (.*)</p>', part) for name, part in parts}
        self.missing = {name: html.unescape(match[1]) for name, match in told.items() if match}


@pytest.fixture
def page_of(tmp_path):
    """A function that writes and reads the page of a run."""

    def write(run: Path, data: str | None = None) -> Page:
        return Page(report(run, tmp_path / "page.html", data))

    return write
