"""Runs on several processes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import toy_run
from forked import finish, free_port, start


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FSDP_CONFIG = ROOT / "scripts" / "launch" / "nodes_fsdp2.yaml"


def launch(
    script, *arguments, options=(), config: Path | None = None, processes: int = 2, timeout: int = 240
) -> list[str]:
    """The lines that processes on the CPU print, which accelerate starts."""
    command = [Path(sys.executable).parent / "accelerate", "launch", "--num_processes", processes]
    command += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", free_port()]
    command += ["--config_file", config] if config else ["--multi_gpu"]
    command += [*options, script, *arguments]
    path = f"{ROOT}:{ROOT / 'scripts'}:{HERE}"
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = psutil.Popen(list(map(str, command)), env={**os.environ, **environment}, **pipes)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    # Of each process the end of its traceback; what the launcher adds says nothing
    failures = [line for line in errors.splitlines() if line.startswith("[rank")]
    assert process.returncode == 0, "\n".join(failures[-40:]) or errors[-4000:]
    return output.splitlines()


def kill(process: psutil.Popen):
    """And all that it started."""
    everything = [process, *process.children(recursive=True)]
    for member in everything:
        member.kill()
    psutil.wait_procs(everything)


def launch_jobs(folder: Path, jobs: list[dict], processes: int = 2) -> dict[str, list[dict]]:
    """What each process reports of jobs of `toy_run`, in one launch of accelerate as configured for FSDP2."""
    launch(HERE / "toy_run.py", folder, json.dumps(jobs), config=FSDP_CONFIG, processes=processes, timeout=400)
    return read_reports(folder, jobs, processes)


def fork_jobs(folder: Path, jobs: list[dict], processes: int = 2) -> dict[str, list[dict]]:
    """The same without accelerate's launcher and its environment, and faster."""
    assert finish(start(processes, toy_run.main, str(folder), json.dumps(jobs)), 400) == [0] * processes
    return read_reports(folder, jobs, processes)


def read_reports(folder: Path, jobs: list[dict], processes: int = 1) -> dict[str, list[dict]]:
    """By name, in order of rank."""
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(processes)]
        for name in (job["name"] for job in jobs)
    }
