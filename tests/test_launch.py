"""The files in scripts/launch: that the tools they are for read them, and that the settings they name exist."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import HfArgumentParser

from layerlock_hf.cli.launching import CONFIG_OPTION, config_file
from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.pretraining.arguments import DataArguments, parse
from layerlock_hf.recipes import load_recipe
from layerlock_hf.training import LayerLockTrainingArguments, StageArguments


ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "scripts" / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
COMMAND = re.compile(
    r"accelerate launch|layerlock pretrain|pretrain\.py|--(config|machine_rank|main_process_ip|per_device\w+) "
)
SCRIPTS = [LAUNCH / "slurm.sbatch", LAUNCH / "hf_jobs.sh", LAUNCH / "node.sh"]


def header(path: Path) -> str:
    """The comment that the file starts with, and in it the command."""
    lines = path.read_text().splitlines()
    lines = [line for line in lines if not line.startswith(("#!", "#SBATCH"))]
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_accelerate_reads_the_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes % config.num_machines == 0
    assert config.mixed_precision is None  # would hold for recipes in fp32 too
    if config.num_machines > 1:
        assert config.rdzv_backend == "static"


def test_fsdp_wraps_our_layers():
    fsdp = load_config_from_file(str(LAUNCH / "nodes_fsdp2.yaml")).fsdp_config
    assert fsdp["fsdp_version"] == 2 and fsdp["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"
    assert [fsdp["fsdp_transformer_layer_cls_to_wrap"]] == list(LayerLockViTForPretraining._no_split_modules)
    known = {name for action in launch_command_parser()._actions for name in action.option_strings}
    assert {f"--{name}" for name in fsdp} <= known


@pytest.mark.parametrize("path", CONFIGS + SCRIPTS, ids=name_of)
def test_settings_and_files_that_are_named_exist(path):
    """Each flag is one of `layerlock pretrain`, of accelerate launch, or of the tool that the script is for."""
    text = path.read_text()
    command = f"layerlock pretrain {CONFIG_OPTION} {path.stem} " if path in CONFIGS else path.name
    assert command in header(path)
    for name in re.findall(rf"{CONFIG_OPTION} (\S+)", text):
        assert Path(config_file(name)).samefile(LAUNCH / f"{name}.yaml")
    for name in re.findall(r"scripts/[\w/.-]+\.(?:yaml|py|sbatch|sh)", text):
        assert (ROOT / name).is_file(), name
    parser = HfArgumentParser((StageArguments, DataArguments, LayerLockTrainingArguments))
    known = {
        name for of in (parser, launch_command_parser()) for action in of._actions for name in action.option_strings
    }
    known |= {"--config", CONFIG_OPTION}
    for line in text.splitlines():
        # srun, sbatch, git and others have options of their own
        if COMMAND.search(line):
            foreign = {"--num_processes", "--nodes", "--gpus-per-node", "--time"}
            assert set(re.findall(r"(?<=\s)--[a-z][\w-]*", line)) - foreign <= known, line


def test_recipes_in_the_commands_fit_their_batches():
    """The clips per rank that the commands ask for divide the recipe's, on the processes of the configuration."""
    for path in CONFIGS:
        command = header(path)
        recipe = load_recipe(re.search(r"--config (\S+)", command).group(1))
        clips = int(re.search(r"--per_device_train_batch_size (\d+)", command).group(1))
        processes = re.search(r"--num_processes (\d+) \\", command)
        num_ranks = int(processes.group(1)) if processes else load_config_from_file(str(path)).num_processes
        assert recipe["global_batch_size"] % (clips * num_ranks) == 0


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_bash_reads_the_script(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, "--shell", "bash", str(path)], check=True)


def test_hf_jobs_understands_its_options():
    """As far as that goes without the network: it prints the job."""
    job = {"CODE": "https://example.org/code", "BUCKET": "me/bucket", "FLAVOR": "h200x8", "TIMEOUT": "3d"}
    environment = {**os.environ, **job, "HF_TOKEN": "none", "OPTIONS": "--dry-run --namespace me"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [str(LAUNCH / "hf_jobs.sh"), "--config", "recipe.yaml", "--name", "of the run"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "not submitted" in result.stdout and "--config recipe.yaml --name" in result.stdout


def test_ray_passes_arguments_that_pretrain_knows():
    """Ray itself is not installed, so its workers are not started."""
    path = LAUNCH / "ray_train.py"
    space = runpy.run_path(str(path))
    command = re.search(r"^python scripts/launch/ray_train\.py (.+?)\n\n?$", space["__doc__"], re.M | re.S).group(1)
    arguments = command.replace("\\\n", "").split()
    ray, rest = space["parse"]([*arguments, "--on_cpu"])
    assert ray.num_workers == 8 and ray.on_cpu
    training_args = parse(rest).training
    assert training_args.use_cpu
    assert training_args.resume_from_checkpoint == "auto"
    assert training_args.per_device_train_batch_size == 32


class Cluster:
    """One node without SLURM: stand-ins for its programs and for the agent of accelerate, which is a line of bash."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "out"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.write("srun", 'shift; exec "$@"')
        self.write("scontrol", f'[ "$1" = show ] && echo localhost || echo "$@" >> {folder}/requeued')

    def write(self, name: str, line: str):
        (self.bin / name).write_text(f"#!/bin/bash\n{line}\n")
        (self.bin / name).chmod(0o755)

    def run(self, agent: str, restarts: int = 0, stop: bool = False) -> tuple[int, bool]:
        """Exit status of the job, and whether it was requeued."""
        self.write("accelerate", f'echo "$@" > {self.folder}/arguments; {agent}')
        (self.folder / "requeued").unlink(missing_ok=True)
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_NODEID": "0"}
        job |= {"SLURM_RESTART_COUNT": str(restarts), "SLURM_GPUS_ON_NODE": "8", "OUT": str(self.out)}
        environment = {**os.environ, **job, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        with subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch"), "--seed", "1"], env=environment) as process:
            if stop:
                while not (self.out / "running").exists() and process.poll() is None:
                    time.sleep(0.05)
                process.send_signal(signal.SIGUSR1)
            code = process.wait(timeout=60)
        return code, (self.folder / "requeued").exists()

    def num_failures(self) -> int:
        return len((self.out / "failures-7").read_text().splitlines())


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def test_slurm_ends_a_run_that_is_finished_or_never_began(cluster):
    assert cluster.run("exit 0") == (0, False)
    arguments = (cluster.folder / "arguments").read_text()
    assert "--num_machines 1 --num_processes 8 --machine_rank 0" in arguments
    assert f"pretrain.py --seed 1 --output_dir {cluster.out} --resume_from_checkpoint auto" in arguments
    port = re.search(r"--main_process_port (\d+)", arguments).group(1)
    assert cluster.run("exit 0", restarts=1) == (0, False)
    assert f"--main_process_port {int(port) + 1} " in (cluster.folder / "arguments").read_text()
    assert cluster.run("exit 1") == (1, False)


def test_slurm_requeues_crashes_while_there_is_progress(cluster):
    begin = f"sleep 0.1; touch {cluster.out}/stages.json; exit 1"
    save = "mkdir {}/checkpoint-{}; exit 1"
    assert cluster.run(begin) == (0, True) and cluster.num_failures() == 1
    assert cluster.run("exit 1", restarts=1) == (0, True) and cluster.num_failures() == 2
    assert cluster.run(save.format(cluster.out, 9), restarts=2) == (0, True) and cluster.num_failures() == 1
    assert cluster.run(save.format(cluster.out, 10), restarts=3) == (0, True) and cluster.num_failures() == 1
    for restarts in (4, 5):
        assert cluster.run("exit 1", restarts) == (0, True)
    assert cluster.run("exit 1", restarts=6) == (1, False)


def test_slurm_stops_the_workers_and_requeues(cluster):
    """The signal must reach the workers, the children of the agent, and not the agent."""
    agent = (
        f"trap 'touch {cluster.out}/hit' TERM USR1; sleep 50 & sleep 0.5; touch {cluster.out}/running; wait; exit 1"
    )
    started = time.monotonic()
    assert cluster.run(agent, stop=True) == (0, True)
    assert time.monotonic() - started < 40  # the worker did not sleep to its end
    assert not (cluster.out / "hit").exists() and cluster.num_failures() == 0


@pytest.mark.slow
def test_a_node_that_is_stopped_while_it_waits_does_not_start_again(tmp_path):
    starts = tmp_path / "starts"
    command = ["bash", str(LAUNCH / "node.sh"), "bash", "-c", f"echo >> {starts}; exit 1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert "attempt 0 ended with 1" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    assert starts.read_text() == "\n"


@pytest.mark.slow
def test_a_node_starts_again_until_it_is_done(tmp_path):
    starts = tmp_path / "starts"
    command = f"echo >> {starts}; [ $(wc -l < {starts}) -eq 2 ]"
    result = subprocess.run(["bash", str(LAUNCH / "node.sh"), "bash", "-c", command], timeout=60)
    assert result.returncode == 0
    assert starts.read_text() == "\n\n"
