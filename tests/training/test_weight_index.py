"""Checkpoints and teachers of strangers run no code, and lead to no file but their own."""

import json
import pickle
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file
from toy_methods import MaskedClips
from transformers import set_seed

from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining, LayerLockViTModel
from layerlock_hf.training import LayerLockTrainer, LayerLockTrainingArguments, load_teacher, mae
from layerlock_hf.training.run_file import CheckpointRefused


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path):
    """The file that exists if code has run."""
    marker = tmp_path / "code has run"
    with open(tmp_path / "trap", "wb") as file:
        pickle.dump(Trap(marker), file)
    with open(tmp_path / "trap", "rb") as file:
        pickle.load(file).close()
    assert marker.exists()  # the trap has teeth
    marker.unlink()
    return marker


def make_trainer(config, folder):
    set_seed(0)
    arguments = LayerLockTrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return LayerLockTrainer(LayerLockViTForPretraining(config), arguments, mae(6), MaskedClips())


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_sizes):
    """The first of the two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(LayerLockViTConfig.from_preset("tiny", **tiny_sizes), folder).train()
    return folder / "checkpoint-1"


@pytest.fixture
def checkpoint(tmp_path, written):
    """A copy of it, whose manifest is the stranger's and vouches for nothing."""
    folder = shutil.copytree(written, tmp_path / "checkpoint-1")
    (folder / "manifest.json").write_text('{"files": {}}\n')
    return folder


WRITERS = {"torch": torch.save, "pickle": lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=2))}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "scaler.pt", "weights"]
)
def test_what_a_resumed_run_reads_is_no_code(tiny_config, checkpoint, marker, tmp_path, name, write):
    if name == "weights":
        (checkpoint / "model.safetensors").unlink()
        name = "pytorch_model.bin"
    WRITERS[write](Trap(marker), checkpoint / name)
    with pytest.raises((pickle.UnpicklingError, ValueError, RuntimeError, AttributeError)):
        make_trainer(tiny_config, tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "pytorch_model.bin", "rng_state_1.pth"])
def test_what_a_resumed_run_has_no_use_for_is_not_read(tiny_config, checkpoint, marker, tmp_path, name):
    torch.save(Trap(marker), checkpoint / name)
    trainer = make_trainer(tiny_config, tmp_path / "out")
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 2 and not marker.exists()


def plant_index(folder, name):
    """Make the weights of a folder a shard of this name."""
    weight_map = dict.fromkeys(load_file(folder / "model.safetensors"), name)
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def teacher(tmp_path, tiny_config):
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.parametrize("name", ["../outside.safetensors", "OUTSIDE", "sub/../../outside.safetensors", ".."])
def test_an_index_names_files_beside_it_alone(tiny_config, checkpoint, teacher, tmp_path, name):
    name = name.replace("OUTSIDE", str(tmp_path / "outside.safetensors"))
    plant_index(checkpoint, name)
    with pytest.raises(CheckpointRefused, match="not a file beside it"):
        make_trainer(tiny_config, tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))
    plant_index(teacher, name)
    with pytest.raises(ValueError, match="teacher: cannot load .*not a file beside it"):
        load_teacher(str(teacher))


def test_a_teacher_in_shards_loads(teacher, tiny_config):
    model = LayerLockViTModel.from_pretrained(teacher)
    model.save_pretrained(teacher, max_shard_size="50KB")
    (teacher / "model.safetensors").unlink(missing_ok=True)
    assert len(list(teacher.glob("model-*.safetensors"))) > 1
    again, _, _ = load_teacher(str(teacher))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_the_index_must_be_one(teacher):
    (teacher / "model.safetensors").unlink()
    (teacher / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    with pytest.raises(ValueError, match="teacher: .*index.json of .* cannot be read"):
        load_teacher(str(teacher))


@pytest.mark.parametrize("write", WRITERS)
def test_weights_of_a_teacher_are_no_code(teacher, marker, write):
    (teacher / "model.safetensors").unlink()
    WRITERS[write](Trap(marker), teacher / "pytorch_model.bin")
    with pytest.raises(ValueError, match="its weights hold more than arrays"):
        load_teacher(str(teacher))
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["layerlock", "stranger"])
def test_code_beside_a_teacher_does_not_run(teacher, marker, model_type):
    config = json.loads((teacher / "config.json").read_text())
    config["model_type"] = model_type
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (teacher / "config.json").write_text(json.dumps(config))
    (teacher / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    start = time.monotonic()
    if model_type == "layerlock":
        load_teacher(str(teacher))
    else:
        with pytest.raises(ValueError, match="teacher: cannot load"):
            load_teacher(str(teacher))
    assert not marker.exists() and time.monotonic() - start < 10  # nobody was asked
