"""The command `layerlock`.

This module and `programs` import nothing but the standard library, and are loaded by their paths (see
`scripts/layerlock`): importing anything of the package runs its `__init__`, which loads PyTorch and registers the
models with Transformers. Thus `layerlock --help` and `layerlock recipes` answer at once, and so does Ctrl-C.
"""

import difflib
import gc
import importlib
import importlib.util
import shutil
import sys
import textwrap
from pathlib import Path


PACKAGE = Path(__file__).resolve().parents[1]
# Subcommand -> what it does. Each is the module of its name beside this one, and `main(arguments)` there
PROGRAMS = {
    "pretrain": "pretrain an encoder from a recipe, on one GPU or many nodes",
    "readout": "train readouts on a frozen encoder, and test them",
    "compare": "compare several readout results in one table and one picture",
    "predict": "predict the class or depth of videos with a trained readout",
    "embed": "embed videos of any length: a vector for every window, with its time",
    "search": "find the windows of embedded videos that are most like a clip",
    "prepare": "check every video in a folder, and pack the good ones into shards",
    "inspect": "inspect the data of a run before it starts, and time its loading",
    "cost": "count what a run will cost before it starts, and check it against the log",
    "health": "tell whether a run is healthy, and which checkpoint to keep",
    "app": "serve a page to try a run on videos, or write it as a Space",
    "report": "write a page about a run: curves, stages, pictures of features",
    "probe": "probe frozen encoders on procedural clips",
    "analyze": "look at what encoders represent at each depth",
    "convert": "convert released 4DS weights for the Auto classes",
    "export": "make a repository of a run: model, code, card",
    "push": "push a run to the Hub, every stage a revision",
    "demo": "pretrain on procedural clips and see what was learned, in ten minutes",
    "recipes": "list the recipes",
    "env": "show what this machine has, and what is missing",
}
MIN_TEXT = 60  # characters of what a recipe is
HELP = ("-h", "--help", "help")
KINDS = {"": "Main", "ablations": "Ablations", "blockwise": "Blockwise", "readouts": "Readouts (layerlock readout)"}


def load(name: str):
    """A module of the package by its path, under its own name: without the package, which may be imported later."""
    path = PACKAGE.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"layerlock_hf.{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def print_help():
    print("usage: layerlock SUBCOMMAND [--help | ARGUMENTS]\n")
    print("Self-supervised pretraining of video encoders by progressive freezing (LayerLock), and its evaluation.\n")
    for name, text in PROGRAMS.items():
        print(f"  {name:10}{text}")
    print("\nA first look, which takes ten minutes on two CPU cores: layerlock demo")


def recipes(arguments: list[str]):
    """List the recipes, all or those whose names contain one of the arguments."""
    if arguments and arguments[0] in HELP:
        print("usage: layerlock recipes [NAME ...]\n")
        print("Lists the recipes for --config: all, or those with a NAME in theirs.")
        return
    summaries = load("recipes").list_recipes()
    shown = [one for one in summaries if not arguments or any(part in one.name for part in arguments)]
    if not shown:
        raise SystemExit(
            f"error: no recipe has {' or '.join(arguments)} in its name: `layerlock recipes` lists them all"
        )
    width = max(len(one.name) for one in shown)
    columns = shutil.get_terminal_size().columns
    for kind, title in KINDS.items():
        rows = [one for one in shown if one.kind == kind]
        if rows:
            print(f"{title}:")
        for one in rows:
            head = f"  {one.name:{width}}  {one.model:10} {one.num_steps:>7,} steps  "
            print(head + textwrap.shorten(one.text, max(MIN_TEXT, columns - len(head)), placeholder=" ..."))


def load_program(name: str):
    """The module of a subcommand. Imports leave no garbage, and looking for some would be a fifth of their time."""
    gc.disable()
    try:
        return importlib.import_module(f"layerlock_hf.cli.{name}")
    finally:
        gc.enable()


def main(arguments: list[str]):
    """Run a subcommand."""
    name, *rest = arguments or ["--help"]
    if name in HELP:
        return print_help()
    if name == "--version":
        return print(f"layerlock_hf {load('utils.version').VERSION}")
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f"did you mean {close[0]}?" if close else "`layerlock --help` lists them"
        raise SystemExit(f"error: there is no subcommand {name}: {hint}")
    if name == "recipes":
        return recipes(rest)
    sys.argv = [f"layerlock {name}", *rest]  # what messages call the program
    return load_program(name).main(rest)


if __name__ == "__main__":
    load("cli.programs")  # how programs end
    raise SystemExit(main(sys.argv[1:]))
