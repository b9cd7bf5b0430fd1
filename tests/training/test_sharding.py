"""What of sharding one process can show: what is refused, before anything is trained or run."""

import io
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING
from toy_methods import make_trainer

from layerlock_hf.training.export import load_sharded
from layerlock_hf.training.pickle_check import DataUnpickler, check_pickles
from layerlock_hf.training.run_file import CheckpointRefused
from layerlock_hf.training.sharding import check_weights, set_up_sharding


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # of DCP in one process


def test_fsdp_that_is_not_active(tmp_path, monkeypatch):
    """As by a launch on the CPU, of which accelerate makes DDP."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp is set, but accelerate would not use it"):
        make_trainer("mae", tmp_path)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(ValueError, match="fsdp is set, but accelerate would not use it"):
        set_up_sharding(Accelerator(cpu=True), is_asked_for=True)
    set_up_sharding(Accelerator(cpu=True), is_asked_for=False)


class Launch:
    """What an accelerator shows that was launched with FSDP."""

    def __init__(self, **settings):
        self.state = self
        self.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
        self.is_fsdp2 = self.fsdp_plugin.fsdp_version == 2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"fsdp_version": 1}, "fsdp_version must be 2, got 1"),
        ({"fsdp_version": 2, "activation_checkpointing": True}, "set it as a training argument"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of accelerate, that FSDP1 is old
def test_settings_of_fsdp(settings, message):
    with pytest.raises(ValueError, match=message):
        set_up_sharding(Launch(**settings), is_asked_for=True)


def test_precision_of_fsdp():
    launch = Launch(fsdp_version=2)
    set_up_sharding(launch, is_asked_for=True)
    assert launch.fsdp_plugin.mixed_precision_policy is None
    launch.fsdp_plugin.set_mixed_precision("bf16")
    set_up_sharding(launch, is_asked_for=True)
    policy = launch.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
    assert not policy.cast_forward_inputs  # clips, which are targets, and positions


def test_deepspeed(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="deepspeed is not supported"):
        make_trainer("mae", tmp_path, deepspeed={"zero_optimization": {"stage": 2}})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # by a configuration of accelerate
    with pytest.raises(ValueError, match="deepspeed is not supported"):
        make_trainer("mae", tmp_path)


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def saved(tmp_path):
    """A folder of DCP, with tensors and other values as optimizers have them."""
    state = {
        "state": {"a": torch.ones(4), "b": torch.ones(3, dtype=torch.bfloat16)},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "decoupled": True, "foreach": None}],
    }
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_metadata_of_dcp(saved):
    check_pickles(saved)


class Attribute:
    """Pickled as `getattr` of these, as Python 3.11.0 to 3.11.3 pickles members of enumerations."""

    def __init__(self, owner, name: str):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_members_of_enumerations_as_older_python_wrote_them():
    member = Attribute(_MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST")
    assert DataUnpickler(io.BytesIO(pickle.dumps(member))).load() is _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    for owner, name in ((torch.Size, "numel"), (_MEM_FORMAT_ENCODING, "__init__")):
        with pytest.raises((CheckpointRefused, KeyError)):
            DataUnpickler(io.BytesIO(pickle.dumps(Attribute(owner, name)))).load()


def test_planted_metadata(saved, tmp_path):
    (saved / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "owned")))
    with pytest.raises(CheckpointRefused, match="which no checkpoint needs"):
        check_pickles(saved)
    assert not (tmp_path / "owned").exists()
    pickle.loads((saved / ".metadata").read_bytes())  # it would have
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("part", ["pytorch_model_fsdp_0", pytest.param("optimizer_0", marks=pytest.mark.slow)])
def test_planted_metadata_of_a_checkpoint(saved, tmp_path, part):
    """As `check_weights` finds it before a run resumes, and as export does."""
    checkpoint = tmp_path / "checkpoint-1"
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        shutil.copytree(saved, checkpoint / name)
    launch = Launch(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    check_weights(checkpoint, launch)
    with pytest.raises(CheckpointRefused, match="is not complete"):
        load_sharded(checkpoint)
    (checkpoint / "manifest.json").write_text('{"files": {}}')
    (checkpoint / part / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "owned")))
    with pytest.raises(CheckpointRefused, match="which no checkpoint needs"):
        check_weights(checkpoint, launch)
    with pytest.raises(CheckpointRefused, match="which no checkpoint needs|cannot be loaded"):
        load_sharded(checkpoint)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "state_dict_type, moments", [("FULL", "model.safetensors and optimizer.bin"), ("SHARDED", "pytorch_model_fsdp_0")]
)
def test_weights_of_another_kind(tmp_path, state_dict_type, moments):
    launch = Launch(fsdp_version=2, state_dict_type=f"{state_dict_type}_STATE_DICT")
    for found, names in (("nothing", []), ("model.safetensors, optimizer.pt", ["model.safetensors", "optimizer.pt"])):
        for name in names:
            (tmp_path / name).touch()
        message = f"holds weights and moments as {found}, but this run would load {moments}"
        with pytest.raises(CheckpointRefused, match=message):
            check_weights(tmp_path, launch)


@pytest.mark.parametrize("name", ["builtins eval", "os system", "torch.serialization load", "torch load", "torch hub"])
def test_names_in_metadata(saved, name):
    module, attribute = name.split()
    (saved / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(CheckpointRefused, match=f"it names {module}.{attribute}"):
        check_pickles(saved)


def test_planted_value(tmp_path):
    """Values that are no tensors are loaded by DCP with all that pickles can do."""
    dcp.save({"lr": Planted(tmp_path / "owned")}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(CheckpointRefused, match="weights_only|Unsupported"):
        check_pickles(tmp_path / "dcp")
    assert not (tmp_path / "owned").exists()
    dcp.load({"lr": None}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert (tmp_path / "owned").exists()


def test_metadata_that_leads_outside(saved, tmp_path):
    with (saved / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    for stored in metadata.storage_data.values():
        stored.relative_path = "../elsewhere"
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointRefused, match="outside the checkpoint"):
        check_pickles(saved)
    for content in (b"", b"no pickle", pickle.dumps({"a": 1})):
        (saved / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointRefused):
            check_pickles(saved)
