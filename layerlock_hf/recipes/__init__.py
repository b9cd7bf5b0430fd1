"""Recipes: flat YAML files of settings, one per row of the papers' tables, found by name.

Imports nothing slow, so that `layerlock recipes` answers at once.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml


FOLDER = Path(__file__).resolve().parent
MAX_HINTS = 3
# The end of a sentence, but for that of "Sec. 3.1"
SENTENCE = re.compile(r"(?<!\bsec)\.(?: |$)", re.IGNORECASE)


class _OnceLoader(yaml.SafeLoader):
    """Refuses a setting that is given twice; YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key) for key, _ in node.value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} is given {names.count(twice[0])} times")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class RecipeSummary:
    """One line about a recipe of the package.

    Attributes:
        name: what `--config` takes.
        kind: the folder that it lies in: "" (the main ones), "ablations", "blockwise" or "readouts".
        text: what it is.
        model: its preset, "" of readouts.
        num_steps: of the optimizer.
    """

    name: str
    kind: str
    text: str
    model: str
    num_steps: int


def recipe_paths() -> dict[str, Path]:
    """The recipes of the package by name, the main ones first."""
    paths = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (path.parent != FOLDER, path.parent.name, path.stem))
    return {path.stem: path for path in paths}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe: the one at this path, else the package's recipe of this name.

    Raises:
        ValueError: if there is neither, suggesting similar names.
    """
    path, paths = Path(name_or_path).expanduser(), recipe_paths()
    if path.is_file():
        return path
    if str(name_or_path) in paths:
        return paths[str(name_or_path)]
    close = difflib.get_close_matches(path.stem, paths, n=MAX_HINTS, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`layerlock recipes` lists those of the package"
    raise ValueError(f"config: there is no recipe {name_or_path}: {hint}")


def load_recipe(name_or_path: str | Path) -> dict:
    """The settings of a recipe: `load_recipe("demo")["max_steps"]`.

    Raises:
        ValueError: if there is none, or its file is not a flat table of settings.
    """
    path = find_recipe(name_or_path)
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is not valid YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"config: {path} must hold settings, one `name: value` per line")
    return settings


def list_recipes() -> list[RecipeSummary]:
    """All recipes of the package, the main ones first."""
    return [_summary(name, path) for name, path in recipe_paths().items()]


def paragraphs_of(name_or_path: str | Path) -> list[str]:
    """The comment at the head of a recipe: what it is, then where the paper is silent or contradicts itself.

    Raises:
        ValueError: if there is no such recipe.
    """
    lines = find_recipe(name_or_path).read_text(encoding="utf-8").splitlines()
    num_lines = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    comment = "\n".join(line.removeprefix("#").strip() for line in lines[:num_lines])
    return [" ".join(paragraph.split()) for paragraph in comment.split("\n\n")]


def _summary(name: str, path: Path) -> RecipeSummary:
    settings = load_recipe(path)
    is_readout = "num_examples" in settings
    return RecipeSummary(
        name=name,
        kind="" if path.parent == FOLDER else path.parent.name,
        text=SENTENCE.split(" ".join(paragraphs_of(path)))[0],
        model=settings.get("preset", ""),
        num_steps=settings["num_examples"] // settings["batch_size"] if is_readout else settings["max_steps"],
    )
