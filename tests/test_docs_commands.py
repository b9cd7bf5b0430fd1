"""Every command in a block of bash is parsed by the parser of its program, with all of its flags and their values."""

import argparse
import importlib
import re
import runpy
import sys

import pytest
from accelerate.commands.launch import launch_command_parser
from pages import PAGES, ROOT, name_of, shell_lines
from torch.distributed.run import get_args_parser

from layerlock_hf.cli import cost, embed, inspect, main, prepare
from layerlock_hf.cli.launching import launch_options, split, with_config_file
from layerlock_hf.evaluation.adapters import LABELLED
from layerlock_hf.evaluation.arguments import parse as parse_readout
from layerlock_hf.pretraining.arguments import parse as parse_pretraining
from layerlock_hf.pretraining.planning import given_settings


# What is no program of ours, and why its line is not parsed here
OTHERS = {
    "pip": "pip's own",
    "make": "its targets are looked up in tests/test_docs.py",
    "hf": "the Hub's own",
}
PLACES = {"VIDEOS": "videos", "OUT": "out", "RECIPE": "demo"}
HERE = ["--use_cpu", "true"]  # recipes in bf16 ask for a GPU


class Parsed(BaseException):
    """A program has parsed its arguments, and is not to do anything."""


def stops(parse):
    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    return parse_and_stop


def pretrain(arguments: list[str]):
    theirs, ours = split(arguments, launch_options())
    launch_command_parser().parse_args([*with_config_file(theirs), "program"])
    parse_pretraining([*ours, *HERE])


def plan(arguments: list[str]):
    own, rest = cost.parser_of_this_program().parse_known_args(arguments)
    if rest[0].startswith("-"):
        given_settings(rest, also=vars(own))
    else:
        assert len(rest) == 1, "of a run its folder alone"


def analyze(arguments: list[str]):
    name, *rest = arguments
    parser = importlib.import_module(f"layerlock_hf.cli.analyze_{name}").make_parser()
    if name != "convergence":
        return parser.parse_args(rest)
    own, settings = parser.parse_known_args(rest)  # the rest is for the runs
    return given_settings(["--config", own.config, *settings])


# Programs whose parsing is a function; of all others `main` runs until it has parsed
PARSERS = {
    "pretrain": pretrain,
    "readout": parse_readout,
    "cost": plan,
    "inspect": inspect.read_settings,
    "analyze": analyze,
    "embed": embed.parse,
    "prepare": prepare.parse,
    "recipes": main.recipes,
}


def parse(words: list[str], monkeypatch):
    """Raise what the program raises if it does not take this line."""
    program, *arguments = [PLACES.get(word, word) for word in words if word != "..."]
    if program == "layerlock":
        program, *arguments = arguments
        parser = PARSERS.get(program) or importlib.import_module(f"layerlock_hf.cli.{program}").main
    elif program.startswith("--"):  # a part of a line of layerlock readout
        task = "classification" if arguments[0] in LABELLED else "depth"
        return parse_readout(["--model", "model", "--task", task, "--output_dir", "out", program, *arguments])
    elif program == "accelerate":
        assert arguments[0] == "launch"
        given = launch_command_parser().parse_args(arguments[1:])
        if given.training_script == "layerlock_hf":
            return parse(["layerlock", *given.training_script_args], monkeypatch)
        assert given.training_script in ("scripts/pretrain.py", "layerlock_hf.cli.pretrain")
        return parse_pretraining([*given.training_script_args, "--train_data", "v", "--output_dir", "out", *HERE])
    elif program == "torchrun":
        given = get_args_parser().parse_args(arguments)
        assert given.module and given.training_script == "layerlock_hf"
        return parse(["layerlock", *given.training_script_args], monkeypatch)
    elif arguments[0] == "-m":
        assert arguments[1] == "pytest", "the only module that is started"
        return None
    else:
        script, *arguments = arguments
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

        def parser(_):
            runpy.run_path(str(ROOT / script), run_name="__main__")

    with monkeypatch.context() as patches:
        if program not in PARSERS:
            patches.setattr(argparse.ArgumentParser, "parse_args", stops(argparse.ArgumentParser.parse_args))
        try:
            parser(arguments)
        except Parsed:
            return None
    assert program in PARSERS, f"{program} has not parsed anything"


ON_HUB = ROOT / "docs" / "hub.md"  # runs as written in tests/hub/test_guide.py
LINES = [(page, words) for page in PAGES if page != ON_HUB for words in shell_lines(page) if words[0] not in OTHERS]


@pytest.mark.parametrize(("page", "words"), LINES, ids=lambda value: name_of(value) if hasattr(value, "stem") else "")
def test_lines_are_parsed(page, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parse(words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "layerlock pretrain --config demo --train_data videos --output_dir out --max_step 3",
        "layerlock pretrain --config demo --train_data videos --output_dir out --max_steps three",
        "layerlock cost --config demo --gpus none",
        "layerlock demo --steps 3",
        "layerlock push runs/mine --repository org/name",
        "layerlock readout --model m --task sleep --data d --output_dir out",
        "python benchmarks/methods.py --seeds three",
    ],
)
def test_lines_that_are_wrong_are_refused(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, SystemExit)):
        parse(line.split(), monkeypatch)


def test_commands_in_the_text_of_benchmarks_are_parsed(tmp_path, monkeypatch):
    """Where measurements name the command that made them."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("benchmarks/README.md", "docs/claims.md"))
    found = {" ".join(span.split()) for span in re.findall(r"`(python benchmarks/[^`]+)`", text)}
    assert len(found) > 10
    monkeypatch.chdir(tmp_path)
    for line in found:
        if "ARGUMENTS" not in line:
            parse(line.split(), monkeypatch)
