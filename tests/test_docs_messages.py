"""The errors that docs/troubleshooting.md quotes are still those of the code."""

import ast
import functools
import re

from pages import ROOT, name_of


PAGE = ROOT / "docs" / "troubleshooting.md"
HOLE = "\0"  # where a message has a value


def template(node: ast.expr) -> str:
    """A string, or an f-string with a hole for every value."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HOLE
    return "".join(template(part) for part in node.values) if isinstance(node, ast.JoinedStr) else HOLE


@functools.cache
def templates() -> frozenset[str]:
    """All texts of the package."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "layerlock_hf").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr)))
    return frozenset(template(node) for node in nodes)


def quoted() -> list[str]:
    """The first column of the tables."""
    rows = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row for row in rows if " " in row]


def occurs(message: str) -> bool:
    """Whether a text of the package has these words, with values or a few others at every `...`."""
    pattern = re.compile(".{0,80}?".join(map(re.escape, message.split("..."))), re.DOTALL)
    return any(pattern.search(text) for text in templates())


def test_messages_are_those_of_the_code():
    messages = quoted()
    assert len(messages) >= 20
    assert not [message for message in messages if not occurs(message)], name_of(PAGE)


def test_the_comparison_has_teeth():
    assert occurs("config: there is no recipe ...")
    assert not occurs("config: there is no recipe called ...")
    assert not occurs("there is ... no recipe")
