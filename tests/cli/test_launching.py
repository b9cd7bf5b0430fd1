"""`layerlock pretrain` with the options of `accelerate launch` starts itself under it."""

import os
import socket
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

from layerlock_hf.cli import launching, pretrain
from layerlock_hf.data.procedural import write_procedural_dataset


@pytest.fixture(autouse=True)
def not_launched(monkeypatch, tmp_path):
    """As in a shell, without a configuration of accelerate."""
    for name in launching.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launching, "default_config_file", str(tmp_path / "none.yaml"))


@pytest.fixture
def launched(monkeypatch):
    """The command that this process would become, without what every one begins with; None if it stays itself."""

    def launched(*arguments):
        found = []
        monkeypatch.setattr(os, "execv", lambda path, command: found.append(command))
        launching.launch("layerlock_hf.cli.pretrain", list(arguments), launching.launch_options())
        if not found:
            return None
        (command,) = found
        assert command[:4] == [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
        return command[4:]

    return launched


def test_options_of_accelerate_go_to_accelerate(launched):
    ours = ["--config", "demo", "--seed=1", "--max_steps", "3", "--bf16", "true"]
    program = ["--module", "layerlock_hf.cli.pretrain", *ours]
    assert launched(*ours) is None
    assert launched("--num_processes", "8", *ours) == ["--num_processes", "8", *program]
    assert launched(*ours, "--num_processes=8", "--multi_gpu") == ["--num_processes=8", "--multi_gpu", *program]
    assert launched(*ours[:2], "--num_machines", "2", *ours[2:]) == ["--num_machines", "2", *program]


def test_a_misspelt_option_is_suggested(tmp_path):
    arguments = ["--config", "demo", "--train_data", "x", "--output_dir", str(tmp_path), "--num_proceses", "3"]
    with pytest.raises(
        SystemExit, match="error: --num_proceses is not a known setting, .*: did you mean --num_processes\\?"
    ):
        pretrain.main(arguments)


def test_settings_of_ours_that_accelerate_has_too_stay_ours(launched):
    assert launched("--gradient_accumulation_steps", "2") is None


def test_configurations_by_name(launched, tmp_path):
    config, path = launched("--accelerate_config", "fsdp2", "--num_processes", "2", "--seed", "1")[:2]
    assert config == "--config_file" and path == str(launching.CONFIGS / "fsdp2.yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text("num_processes: 2\n")
    assert launched(f"--accelerate_config={mine}")[:2] == ["--config_file", str(mine)]
    with pytest.raises(ValueError, match="accelerate_config must be the name .*got fsdp3: did you mean fsdp2?"):
        launched("--accelerate_config", "fsdp3")
    with pytest.raises(
        ValueError, match="accelerate_config must be the name of a configuration or a YAML file, got nothing"
    ):
        launched("--accelerate_config")


def test_several_gpus_are_all_used(launched, monkeypatch):
    monkeypatch.setattr(launching.torch.cuda, "device_count", lambda: 4)
    assert launched("--seed", "1") == ["--module", "layerlock_hf.cli.pretrain", "--seed", "1"]
    monkeypatch.setenv("LOCAL_RANK", "0")  # accelerate, or torchrun, has started this process
    assert launched("--seed", "1") is None
    with pytest.raises(
        ValueError, match="--num_processes is an option of accelerate launch, which is already running"
    ):
        launched("--num_processes", "2")


@pytest.mark.slow
def test_it_is_accelerate_launch(tiny_sizes, tmp_path):
    """Two processes, started both ways, and a line of the program's own where they are wrong."""
    write_procedural_dataset(tmp_path / "data", 4, num_frames=8, image_size=16, progress=False)
    settings = {"preset": "tiny", **tiny_sizes, "frame_stride": 1, "max_steps": 3, "global_batch_size": 4}
    settings |= {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    settings |= {"train_data": str(tmp_path / "data" / "videos"), "dataloader_num_workers": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    layerlock = [sys.executable, "-m", "layerlock_hf", "pretrain"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    weights = []
    for name, before, after in (("ours", layerlock, []), ("theirs", accelerate, ["-m", "layerlock_hf.cli.pretrain"])):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = str(sock.getsockname()[1])
        command = [*before, "--multi_gpu", "--num_processes", "2", "--main_process_port", port, "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", *after]
        command += ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / name)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        assert "4 clips a step" in ended.stdout
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all((tensor == weights[1][name]).all() for name, tensor in weights[0].items())
