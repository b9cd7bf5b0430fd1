"""Who may import whom, how long a file may be, and that importing the package is silent."""

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

from layerlock_hf.training import METHODS


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "layerlock_hf"
FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [path for folder in ("scripts", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
MAX_LINES = 450

# What a method is called, by us and by the papers
METHOD_NAMES = {*METHODS, "layerlock", "4ds", "v-jepa", "vjepa", "jepa", "salt", "bwssl", "loco", "videomae", "locked"}

# Part of the package -> modules of ours that it may import, besides itself. Any submodule of a named one is allowed.
# Imports inside functions count as well.
LAW = {
    "utils": (),
    "models": (),
    "data": ("layerlock_hf.models.video_reading*", "layerlock_hf.utils"),  # there is one video reader
    "training": tuple(f"layerlock_hf.{part}" for part in ("models", "hub", "utils")),
    "evaluation": tuple(f"layerlock_hf.{part}" for part in ("models", "data", "hub", "recipes", "utils")),
    "embedding": tuple(f"layerlock_hf.{part}" for part in ("models", "data", "evaluation", "utils")),
    "analysis": ("layerlock_hf.models", "layerlock_hf.training", "layerlock_hf.evaluation", "layerlock_hf.utils"),
    "hub": ("layerlock_hf.models", "layerlock_hf.utils"),
    "recipes": ("layerlock_hf.utils",),
    "pretraining": tuple(
        f"layerlock_hf.{part}"
        for part in ("models", "data", "training", "evaluation", "analysis", "hub", "recipes", "utils")
    ),
    "reporting": tuple(
        f"layerlock_hf.{part}"
        for part in ("models", "data", "training", "evaluation", "analysis", "hub", "recipes", "pretraining", "utils")
    ),
    "app": tuple(
        f"layerlock_hf.{part}" for part in ("models", "data", "evaluation", "hub", "pretraining", "reporting", "utils")
    ),
}
# What users enter by, which may import everything, and which no part imports
ENTRIES = {"__init__", "__main__", "cli"}

# Files of `models` are copied to the Hub with a checkpoint, and run there without the package.
HUB_LIBRARIES = {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"}
# May be missing there: allowed in a `try` inside a function, which Transformers does not check.
OPTIONAL_LIBRARIES = {"PIL", "av", "torchcodec"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    """The subpackage or the top-level module that a file of the package belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def import_nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported_modules(path: Path) -> list[str]:
    """Absolute names of what a file imports. `from a import b` counts as a.b: b may be a module."""
    package = path.relative_to(ROOT).parent.parts
    names = []
    for node in import_nodes(path):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        else:
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def is_within(name: str, module: str) -> bool:
    """Whether a name is that of a module, or of something in it. `*` in the module stands for any characters."""
    return fnmatch.fnmatchcase(name, module) or fnmatch.fnmatchcase(name, f"{module}.*")


def breaches(path: Path) -> list[str]:
    """Imports of ours that the law forbids to this file."""
    part = part_of(path)
    allowed = (f"layerlock_hf.{part}", *LAW[part])
    ours = [name for name in imported_modules(path) if is_within(name, "layerlock_hf")]
    return [name for name in ours if not any(is_within(name, module) for module in allowed)]


def lazy_lines(path: Path) -> set[int]:
    """Lines in the body of a `try` inside a function."""
    functions = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    ]
    tries = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Try)]
    return {statement.lineno for node in tries for statement in node.body}


def hub_breaches(path: Path) -> list[str]:
    """Imports by a file of `models` that do not work where it was copied to, without its package."""
    found, lazy = [], lazy_lines(path)
    for node in import_nodes(path):
        allowed = HUB_LIBRARIES | (OPTIONAL_LIBRARIES if node.lineno in lazy else set())
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] not in allowed]
        elif not node.level:
            found += [node.module] if node.module.split(".")[0] not in allowed else []
        elif node.level > 1 or not node.module or not (path.parent / f"{node.module}.py").is_file():
            found.append("." * node.level + (node.module or ""))
    return found


def test_every_part_is_under_the_law():
    assert {part_of(path) for path in FILES} - ENTRIES <= set(LAW), "name the new part in LAW, or among the ENTRIES"


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) in LAW], ids=name_of)
def test_import_law(path):
    assert not breaches(path), f"{name_of(path)} may import, of ours, only {part_of(path)} and {LAW[part_of(path)]}"


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) in {"__init__"}], ids=name_of)
def test_what_users_import_does_not_import_the_command_line(path):
    assert not [name for name in imported_modules(path) if is_within(name, "layerlock_hf.cli")]


def test_what_is_imported_first_is_light():
    """`utils.parents` notes the parent before anything slow is imported, see there."""
    first = [PACKAGE / "utils" / name for name in ("__init__.py", "parents.py")]
    names = [name for path in first for name in imported_modules(path)]
    assert not [name for name in names if name.split(".")[0] not in sys.stdlib_module_names]


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("*.py")), ids=name_of)
def test_models_run_without_the_package(path):
    assert not hub_breaches(path), "only stdlib, torch, transformers, huggingface_hub and `from .sibling import name`"


@pytest.mark.parametrize("path", FILES + PROGRAMS, ids=name_of)
def test_nobody_imports_scripts(path):
    assert not [name for name in imported_modules(path) if is_within(name, "scripts")]


def conditions(tree: ast.AST) -> list[ast.AST]:
    """What decides between branches: tests of `if`, `while` and comprehensions, and the patterns of `match`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            found.append(node.test)
        elif isinstance(node, ast.comprehension):
            found += node.ifs
        elif isinstance(node, ast.Match):
            found += [node.subject, *(case.pattern for case in node.cases)]
    return found


def branches_on_methods(source: str) -> list[str]:
    """Conditions that name a method, or compare the setting `method` to anything but the table of methods."""
    found = []
    for condition in conditions(ast.parse(source)):
        for node in ast.walk(condition):
            names = (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in METHOD_NAMES
            )
            is_setting = isinstance(node, ast.Attribute) and node.attr == "method"
            if names or is_setting and ast.unparse(condition) != "self.method not in METHODS":
                found.append(ast.unparse(condition))
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_branch_names_a_method(path):
    assert not branches_on_methods(path.read_text(encoding="utf-8")), "a method is an entry of METHODS"


@pytest.mark.parametrize(
    "source, is_allowed",
    [
        ("if method == 'blockwise': pass", False),
        ("x = 1 if 'SALT' in name else 2", False),
        ("match name:\n    case 'mae' | 'other': pass", False),
        ("while args.method: pass", False),
        ("x = [a for a in b if a != 'teacher_latents']", False),
        ("METHODS = {'mae': None}", True),
        ("if self.method not in METHODS: raise ValueError('mae')", True),
    ],
)
def test_the_search_for_branches_has_teeth(source, is_allowed):
    assert (not branches_on_methods(source)) == is_allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_length(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("file", "line", "is_allowed"),
    [
        ("models/new.py", "from .modeling_layerlock import patchify", True),
        ("models/new.py", "from . import modeling_layerlock", False),
        ("models/new.py", "from ..models.modeling_layerlock import patchify", False),
        ("models/new.py", "from layerlock_hf.models.modeling_layerlock import patchify", False),
        ("models/new.py", "import numpy", False),
        ("models/new.py", "import av", False),
        ("models/new.py", "try:\n        import av\n    except ImportError:\n        pass", True),
        ("models/new.py", "try:\n        import numpy\n    except ImportError:\n        pass", False),
        ("utils/new.py", "from .bounds import MAX_SEED", True),
        ("utils/new.py", "from ..models.file_modes import follow_umask", False),
        ("data/new.py", "from ..models import patchify", False),
        ("data/new.py", "from ..models.video_reading_pyav import read_frames", True),
        ("data/new.py", "from ..models.video_processing_layerlock import x", False),
        ("data/new.py", "from ..utils import files", True),
        ("data/new.py", "import layerlock_hf", False),
        ("training/new.py", "from ..models.objectives import Pixels", True),
        ("training/new.py", "from .. import data", False),
        ("evaluation/new.py", "from ..models import LayerLockViTModel", True),
        ("evaluation/new.py", "from ..data import read_clip", True),
        ("evaluation/new.py", "from ..training import LayerLockTrainer", False),
        ("analysis/new.py", "from ..training.stages import stage_at", True),
        ("analysis/new.py", "from ..training import stages", True),
        ("analysis/new.py", "from ..training.trainer import x", True),
        ("analysis/new.py", "from ..evaluation import probes", True),
        ("analysis/new.py", "from ..data import x", False),
        ("analysis/new.py", "from ..pretraining import x", False),
        ("pretraining/new.py", "from ..analysis import x", True),
        ("hub/new.py", "from ..models import Pixels", True),
        ("hub/new.py", "from ..data import x", False),
        ("evaluation/new.py", "from ..cli import pretrain", False),
        ("evaluation/new.py", "from ..pretraining import pretrain", False),
        ("evaluation/adapters/new.py", "from ...training import x", False),
    ],
)
def test_the_law_has_teeth(tmp_path, monkeypatch, file, line, is_allowed):
    path = tmp_path / "layerlock_hf" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "modeling_layerlock.py").touch()
    path.write_text(f"def late():\n    {line}\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "layerlock_hf")
    found = breaches(path) + (hub_breaches(path) if part_of(path) == "models" else [])
    assert (not found) == is_allowed


@pytest.mark.slow
def test_importing_the_package_is_silent():
    command = [sys.executable, "-c", "import layerlock_hf"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_every_folder_is_a_package():
    """What has no `__init__.py` is missing from the wheel."""
    assert not [path.parent for path in FILES if not (path.parent / "__init__.py").is_file()]
