"""What the trainer overrides and calls of Transformers that Transformers does not promise to keep.

All of it is listed here. When a version changes one of these methods, its test names the method, the version and both
signatures; then see what `LayerLockTrainer` and its base make of the method, and put the new one here.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest
import transformers
from accelerate import Accelerator
from transformers import PreTrainedModel, Trainer

import layerlock_hf.training
from layerlock_hf.training import LayerLockTrainer


# Signatures without annotations, the same in Transformers 5.19 to 5.24
INTERNALS = {
    Trainer: {
        "_build_accelerator_args": "(self, **kwargs)",
        "_get_grad_norm": "(self, model, grad_norm=None)",
        "_get_output_dir": "(self, trial)",
        "_init_training_state": (
            "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)"
        ),
        "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
        "_load_optimizer_and_scheduler": "(self, checkpoint)",
        "_prepare_inputs": "(self, inputs)",
        "_push_from_checkpoint": "(self, checkpoint_folder)",
        "_save": "(self, output_dir=None, state_dict=None)",
        "_save_checkpoint": "(self, model, trial)",
        "_save_optimizer_and_scheduler": "(self, output_dir)",
        "save_model": "(self, output_dir=None, _internal_call=False)",  # public, but for its last argument
    },
    PreTrainedModel: {
        "_set_gradient_checkpointing": (
            "(self, enable=True, gradient_checkpointing_func=<function checkpoint>, every_n_layers=1)"
        ),
    },
    Accelerator: {},
}
# What the Trainer keeps in attributes of itself that are set here
ATTRIBUTES = {"_created_lr_scheduler"}

FOLDER = Path(layerlock_hf.training.__file__).parent
OURS = [kind for kind in LayerLockTrainer.__mro__ if issubclass(kind, Trainer) and kind is not Trainer]


def signature_of(method) -> str:
    """Names and defaults of the arguments: annotations may change and nothing breaks."""
    signature = inspect.signature(method)
    bare = [argument.replace(annotation=inspect.Parameter.empty) for argument in signature.parameters.values()]
    signature = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    return re.sub(r" at 0x[0-9a-f]+", "", str(signature))


def change_of(kind: type, name: str, expected: str) -> str | None:
    """What Transformers has changed about a method, or None."""
    method = getattr(kind, name, None)
    found = signature_of(method) if method is not None else "no method of this name"
    if found == expected:
        return None
    return (
        f"Transformers {transformers.__version__} has changed {kind.__name__}.{name}: expected {expected}, "
        f"found {found}"
    )


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in INTERNALS.items() for name in names])
def test_internals_are_as_they_were(kind, name):
    change = change_of(kind, name, INTERNALS[kind][name])
    assert change is None, change


def attributes_of(tree: ast.AST) -> list[ast.Attribute]:
    """What begins with one underscore."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [node for node in nodes if node.attr.startswith("_") and not node.attr.startswith("__")]


def test_the_list_is_complete():
    """Of the methods that are called anywhere in training, and of those that are overridden, on purpose or not."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.rglob("*.py")]
    named = {node.attr for tree in trees for node in attributes_of(tree)} | {
        name for kind in OURS for name in vars(kind) if name.startswith("_") and not name.startswith("__")
    }
    for kind, listed in INTERNALS.items():
        assert {name for name in named if hasattr(kind, name)} == {name for name in listed if name.startswith("_")}


def test_attributes_do_not_meet():
    """Of the Trainer none is overwritten by accident, and the one that is meant is still there."""

    def assigned(tree):
        return {node.attr for node in attributes_of(tree) if isinstance(node.ctx, ast.Store)}

    theirs = assigned(ast.parse(inspect.getsource(inspect.getmodule(Trainer))))
    ours = [assigned(ast.parse(inspect.getsource(inspect.getmodule(kind)))) for kind in OURS]
    assert set().union(*ours) & theirs == ATTRIBUTES


@pytest.mark.parametrize("name", [name for name in INTERNALS[Trainer] if any(name in vars(kind) for kind in OURS)])
def test_overrides_take_what_the_trainer_gives(name):
    arguments = list(inspect.signature(getattr(Trainer, name)).parameters.values())[1:]
    given = [argument for argument in arguments if argument.kind is not argument.VAR_KEYWORD]
    for kind in OURS:
        if name in vars(kind):
            override = inspect.signature(vars(kind)[name])
            override.bind("self", *[argument.name for argument in given])
            if not any(argument.kind is argument.VAR_POSITIONAL for argument in override.parameters.values()):
                override.bind("self", **{argument.name: None for argument in given})


def test_a_change_is_told(monkeypatch):
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda self, model, trial, metrics=None: None)
    monkeypatch.delattr(Trainer, "_get_output_dir")
    monkeypatch.setattr(transformers, "__version__", "5.99.0")
    changes = [change_of(Trainer, name, INTERNALS[Trainer][name]) for name in ("_save_checkpoint", "_get_output_dir")]
    assert changes == [
        "Transformers 5.99.0 has changed Trainer._save_checkpoint: expected (self, model, trial), "
        "found (self, model, trial, metrics=None)",
        "Transformers 5.99.0 has changed Trainer._get_output_dir: expected (self, trial), "
        "found no method of this name",
    ]
