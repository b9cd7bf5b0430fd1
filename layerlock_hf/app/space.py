"""The page as a Space of the Hub: a folder that holds the models, this package, and what starts the page."""

import json
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from ..pretraining.exporting import check_choice, check_empty, write_repository
from .page import load_gradio
from .reading import MAX_MB, MAX_SECONDS
from .subject import READOUTS, Kept, open_readout


PACKAGE = Path(__file__).resolve().parents[1]
MODELS = "models"
APP = '''"""Drop a video, and see what an encoder makes of it. Written by `layerlock app --export`."""

from pathlib import Path

from layerlock_hf.app import Subject, build_page, find_kept, serve


HERE = Path(__file__).resolve().parent
MAX_MB, MAX_SECONDS = {max_mb!r}, {max_seconds!r}

kept = [one for folder in sorted((HERE / "{models}").iterdir()) for one in find_kept(folder)]
page = build_page(Subject(kept{readouts}), {title!r}, MAX_MB, MAX_SECONDS)

if __name__ == "__main__":
    serve(page, MAX_MB, host="0.0.0.0")
'''
README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
---

Drop a video, and see what a video encoder makes of it: what it saw in training and what it predicts from that, its
features as colours, and which patches resemble the one that is clicked. `models` holds

{models}

It starts by `pip install -r requirements.txt gradio` and `python app.py`, and goes to the Hub by
`hf upload --repo-type space ORGANISATION/NAME .`
"""


def write_space(
    output: Path,
    kept: Sequence[Kept],
    title: str,
    classes: Path | None = None,
    depth: Path | None = None,
    max_mb: float = MAX_MB,
    max_seconds: float = MAX_SECONDS,
) -> Path:
    """Write a folder that starts the page by itself, wherever its requirements are installed.

    This package goes with it, so that it does what it did here.

    Args:
        output: the folder, which must be empty or not exist.
        kept: the models, of `find_kept`.
        title: of the page.
        classes, depth: folders of readouts, as of `Subject`.
        max_mb, max_seconds: as of `Reader`.

    Raises:
        PackageUnusable: without Gradio, whose version the Space names.
        ValueError: if a model cannot be exported, or the folder is not empty.
    """
    gradio = load_gradio()
    given = {"classification": classes, "depth": depth}
    sources = {f"{MODELS}/{number:02}": one.source for number, one in enumerate(kept)}
    sources |= {kind: open_readout(given[kind], kind).source for kind in READOUTS if given[kind] is not None}
    needed = requirements()
    for source in sources.values():
        check_choice(source, None, None)
        check_empty(output, source.folder, source)
    try:
        for name, source in sources.items():
            (output / name).mkdir(parents=True)
            write_repository(source, output / name)
        shutil.copytree(PACKAGE, output / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        names = {"classes": "classification", "depth": "depth"}
        readouts = "".join(f', {name}=HERE / "{kind}"' for name, kind in names.items() if kind in sources)
        app = APP.format(max_mb=max_mb, max_seconds=max_seconds, models=MODELS, readouts=readouts, title=title)
        (output / "app.py").write_text(app, encoding="utf-8")
        (output / "requirements.txt").write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")
        python = ".".join(map(str, sys.version_info[:2]))
        models = "\n".join(f"- {one.name}" for one in kept)
        readme = README.format(title=json.dumps(title), gradio=gradio.__version__, python=python, models=models)
        (output / "README.md").write_text(readme, encoding="utf-8")
    except BaseException:  # also Ctrl-C: half of it is of no use, and would be in the way of the next try
        for path in output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    return output


def requirements() -> list[str]:
    """What this package needs, a line each. Gradio is not among it, as a Space brings that.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        lines = requires(PACKAGE.name)
    except PackageNotFoundError as error:
        raise ValueError("layerlock_hf must be installed to be exported, got a bare folder: pip install .") from error
    return [line for line in lines if "extra ==" not in line]
