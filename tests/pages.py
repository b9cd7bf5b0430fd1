"""The pages in Markdown, and what stands on them."""

import importlib.util
import re
import shlex
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "scripts", "benchmarks", "model_cards", ".github")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
GUIDES = [page for page in PAGES if page.parent == ROOT / "docs" or page == ROOT / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def spans(page: Path) -> list[str]:
    """What stands in backticks within the text, on one line each."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def shell_lines(page: Path) -> list[list[str]]:
    """The words of every line in a block of bash."""
    lines = [line for code in blocks(page, "bash") for line in code.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands(page: Path) -> list[list[str]]:
    """The words of every `layerlock ...` on a page."""
    within = [shlex.split(span, comments=True) for span in spans(page) if re.match("layerlock [a-z]", span)]
    return [*(words for words in shell_lines(page) if words[0] == "layerlock"), *within]


def load_script(name: str):
    """A module of scripts/site."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
