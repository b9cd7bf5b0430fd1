"""The command `layerlock`: its subcommands, and that it answers before anything slow is imported."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from layerlock_hf.cli import main as program
from layerlock_hf.recipes import recipe_paths


SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SHIMS = sorted(path for path in SCRIPTS.glob("*.py"))
# Runs the command, and tells what of these it has imported
WATCHED = """
import runpy, sys
command = sys.argv.pop(1)
try:
    runpy.run_path(command, run_name="__main__")
finally:
    print(*({"torch", "transformers", "numpy", "layerlock_hf"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["recipes"], ["recipes", "table7"], ["pretain"]])
def test_it_answers_without_importing_the_package(arguments):
    command = [sys.executable, "-c", WATCHED, str(SCRIPTS / "layerlock"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stderr.splitlines()[0] == "", ended.stderr
    assert ended.stdout or "did you mean pretrain?" in ended.stderr


@pytest.mark.parametrize("name", sorted(set(program.PROGRAMS) - {"recipes"}))
def test_every_subcommand_is_a_module(name):
    module = importlib.import_module(f"layerlock_hf.cli.{name}")
    assert callable(module.main)
    assert re.search(rf"^layerlock {name}\b", module.__doc__, re.MULTILINE), "its docstring shows the command"


def test_help_names_every_subcommand(capsys):
    program.main([])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in program.PROGRAMS)


def test_recipes_are_listed_with_model_and_steps(capsys):
    program.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.startswith(" ")} == set(recipe_paths())
    (line,) = (line for line in lines if line.startswith("  4ds-g-layerlock "))
    assert re.search(r"4ds-g +488,282 steps +4DS-G with LayerLock, row 2 of Table 1", line)
    with pytest.raises(
        SystemExit, match="error: no recipe has nothing-like-it in its name: `layerlock recipes` lists them all"
    ):
        program.main(["recipes", "nothing-like-it"])


@pytest.mark.parametrize(
    ("name", "hint"), [("pretain", "did you mean pretrain?"), ("xyz", "`layerlock --help` lists them")]
)
def test_unknown_subcommands(name, hint):
    with pytest.raises(SystemExit) as error:
        program.main([name])
    assert str(error.value) == f"error: there is no subcommand {name}: {hint}"


@pytest.mark.parametrize("path", SHIMS, ids=lambda path: path.name)
def test_scripts_are_shims(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 10
    assert re.search(r'sys\.argv\.insert\(1, "(\w+)"\)', path.read_text())[1] in program.PROGRAMS


@pytest.mark.slow
def test_a_shim_is_its_subcommand():
    """As Python starts it, and without what tests have imported."""
    texts = []
    for command in ([SCRIPTS / "compare.py"], [SCRIPTS / "layerlock", "compare"], ["-m", "layerlock_hf", "compare"]):
        ended = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0 and ended.stderr == ""
        texts.append(ended.stdout)
    assert texts[0].startswith("usage: layerlock compare ") and texts[0] == texts[1] == texts[2]
