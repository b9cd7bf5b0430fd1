"""The pages in Markdown: that links lead somewhere, that commands and flags exist, and that snippets of Python run."""

import contextlib
import functools
import importlib
import io
import re
import shutil
from pathlib import Path

import pytest
from pages import FENCE, GUIDES, PAGES, ROOT, blocks, commands, name_of, spans

import layerlock_hf
from layerlock_hf.cli import analyze, cost, inspect
from layerlock_hf.cli.launching import config_file, launch_options
from layerlock_hf.cli.main import PROGRAMS
from layerlock_hf.data import MASKS
from layerlock_hf.evaluation.adapters import LABELLED
from layerlock_hf.evaluation.arguments import parse as parse_readout
from layerlock_hf.pretraining.arguments import make_parser
from layerlock_hf.pretraining.demo_data import write_data
from layerlock_hf.recipes import find_recipe, load_recipe, recipe_paths
from layerlock_hf.training import METHODS


ON_HUB = ROOT / "docs" / "hub.md"
FLAG = re.compile(r"(?<!\S)--[a-z][\w-]*")
OF_OTHERS = {"--signal", "--batch"}  # of sbatch and scancel
MADE = ("RECIPE", "NAME")  # what stands for a name
# Pages whose Python runs in no test here, and why
NOT_RUN = {
    ON_HUB: "runs in tests/hub/test_guide.py, with a Hub on this machine",
    **dict.fromkeys((ROOT / "model_cards").glob("*.md"), "made by the package for weights that do not exist"),
}
# A run of the demo's recipe, and a readout, that take seconds
SHORT = {"max_steps": 2, "freeze_start": 1, "num_freezes": 1, "warmup_steps": 0, "switch_warmup_steps": 0}
SHORT_READOUT = {"num_examples": 32, "batch_size": 16, "warmup_steps": 1}


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def options_of(program: str) -> frozenset[str]:
    """The flags of a subcommand."""
    parsers = {"pretrain": [make_parser()], "inspect": [make_parser(), inspect.parser_of_this_program()]}
    parsers["cost"] = [make_parser(), cost.parser_of_this_program()]
    if program in parsers:
        known = {name for parser in parsers[program] for action in parser._actions for name in action.option_strings}
        return frozenset(known | set(launch_options() if program == "pretrain" else ()))
    if program == "analyze":
        modules = (importlib.import_module(f"layerlock_hf.cli.analyze_{name}") for name in analyze.ANALYSES)
        known = {
            name for module in modules for action in module.make_parser()._actions for name in action.option_strings
        }
        return frozenset(known)
    if program == "recipes":
        return frozenset({"--help"})
    main = parse_readout if program == "readout" else importlib.import_module(f"layerlock_hf.cli.{program}").main
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main(["--help"])
    return frozenset(re.findall(r"--[a-z][\w-]*", printed.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_flags_exist(page):
    for _, program, *words in commands(page):
        assert program in PROGRAMS, program
        known = options_of(program)
        assert {word.partition("=")[0] for word in words if FLAG.match(word)} <= known, f"{program}: {words}"
        for flag, find in (("--config", find_recipe), ("--accelerate_config", config_file)):
            if flag in words and words[words.index(flag) + 1] not in MADE:
                find(words[words.index(flag) + 1])  # raises a ValueError where there is none


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_flags_in_the_text_exist(page):
    known = OF_OTHERS.union(*map(options_of, PROGRAMS))
    for span in spans(page):
        if span.startswith("--"):
            assert set(FLAG.findall(span)) <= known, span


def test_the_package_names_subcommands_that_exist():
    for path in [*(ROOT / "layerlock_hf").rglob("*.py"), *(ROOT / "layerlock_hf").rglob("*.yaml")]:
        for program in re.findall(r"(?:`|^# |^)layerlock ([a-z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert program in PROGRAMS, f"{path}: {program}"


def test_recipes_in_the_table_of_methods_exist():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [row.split("|")[4] for row in rows if row.count("|") == 5]
    names = [name for cell in cells for name in re.findall(r"`([\w.-]+)`", cell) if name[0] not in "-0123456789"]
    assert len(names) > 10
    for name in names:
        assert any(recipe.startswith(name.removesuffix("...")) for recipe in recipe_paths()), name


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_files_of_the_repository_exist(page):
    code = [*spans(page), *blocks(page, "bash")]
    found = re.findall(r"(?<![\w/])(?:(?:benchmarks|scripts|tests|docs|layerlock_hf)/[\w/.-]+\.\w+)", "\n".join(code))
    for name in found:
        assert (ROOT / name).exists() or re.search("[A-Z]{4}", Path(name).stem), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_of_make_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    told = "\n".join([*spans(page), *blocks(page, "bash")])
    assert set(re.findall(r"^make ([a-z-]+)", told, re.MULTILINE)) <= set(targets)


def test_extras_exist_and_are_quoted():
    """In one form, which works in every shell: brackets are patterns for zsh."""
    files = [*PAGES, *(ROOT / "layerlock_hf").rglob("*.py")]
    named = re.findall(r"(.)layerlock_hf\[(\w+)\](.)", "\n".join(path.read_text(encoding="utf-8") for path in files))
    setup = (ROOT / "setup.py").read_text(encoding="utf-8").partition("extras_require={")[2]
    assert {extra for _, extra, _ in named} <= set(re.findall(r'"(\w+)":', setup)) and len(named) >= 8
    assert not [one for one in named if (one[0], one[2]) != ('"', '"')]


def test_claims_say_how_they_were_measured():
    """By a command, a count or a page that tells it; or that they were not."""
    rows = [line.split(" | ") for line in (ROOT / "docs" / "claims.md").read_text("utf-8").splitlines()]
    rows = [row for row in rows if len(row) == 3][2:]
    assert len(rows) > 15
    for claim, where, measured in rows:
        assert re.search(r"(sec\.|Table|Fig\.|abstract)", where), claim
        assert re.search(r"not measured|`(python|layerlock) |\]\(", measured), claim


def test_the_readme_has_the_two_commands():
    lines = [line.split("#")[0].strip() for code in blocks(ROOT / "README.md", "bash") for line in code.splitlines()]
    assert {"make demo", "make test"} <= set(lines)


def test_where_is_what_is_true():
    """What a row of CONTRIBUTING.md says is in a file is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where is what")[1].split("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[2]) for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for row in rows:
        files = [ROOT / name for name in row if "/" in name]
        sources = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
        for name in row:
            where = (ROOT / name).exists() if "/" in name else re.search(rf"^ *(def |class )?{name}\b", sources, re.M)
            assert where, f"{name} in {row}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_snippets_compile(page):
    for code in blocks(page, "python"):
        compile(code, name_of(page), "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_snippets_run_or_are_listed(page):
    assert page in GUIDES or page in NOT_RUN


@pytest.fixture
def nothing_is_added():
    """What snippets add to tables is gone afterwards."""
    before = [dict(table) for table in (MASKS, METHODS, LABELLED)]
    yield
    for table, kept in zip((MASKS, METHODS, LABELLED), before, strict=True):
        table.clear()
        table.update(kept)


def test_snippets_without_files_print_what_they_say(capsys, nothing_is_added):
    codes = [code for page in GUIDES if page not in NOT_RUN for code in blocks(page, "python") if "runs/" not in code]
    assert codes
    for code in codes:
        exec(code, {})
        expected = [line.split("  # ")[1] for line in code.splitlines() if line.startswith("print")]
        assert capsys.readouterr().out.splitlines() == expected


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What `make demo` leaves, in small, and its videos as `videos`."""
    folder = tmp_path_factory.mktemp("repository")
    write_data(folder / "runs/demo/data", 16)
    (folder / "videos").symlink_to(folder / "runs/demo/data/train/videos")
    layerlock_hf.pretrain("demo", folder / "videos", folder / "runs/demo/layerlock", **SHORT)
    return folder


def shortened(function):
    """A run of pretraining with fewer steps; of the settings that its recipe has, and no others."""
    return lambda config, **given: function(
        config, **(given | {name: value for name, value in SHORT.items() if name in load_recipe(config)})
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in GUIDES if blocks(p, "python") and p not in NOT_RUN], ids=name_of)
def test_snippets_run(page, demo, tmp_path, monkeypatch, nothing_is_added):
    """One after the other, as a reader types them, but with few steps."""
    for name in ("pretrain", "build_trainer"):
        monkeypatch.setitem(vars(layerlock_hf), name, shortened(getattr(layerlock_hf, name)))
    train_readouts = layerlock_hf.train_readouts
    monkeypatch.setitem(
        vars(layerlock_hf), "train_readouts", lambda **given: train_readouts(**(given | SHORT_READOUT))
    )
    shutil.copytree(demo, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks(page, "python"):
        exec(code, names)
    assert names["features"].isfinite().all() if "features" in names else names["results"]
