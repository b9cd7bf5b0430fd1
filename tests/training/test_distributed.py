"""Two processes on the CPU: what one process cannot show."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_run
from toy_methods import METHODS


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

SCRIPT = """
import hashlib, sys
import torch
from transformers import TrainerCallback, set_seed
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.training import FreezeSchedule, LayerLockTrainer, LayerLockTrainingArguments, locked, mae
from layerlock_hf.training.processes import run_and_exit

torch.set_num_threads(1)
config = dict(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64, image_size=16,
              patch_size=4, num_frames=4, num_decoder_layers=2)
stages = locked(mae(6), FreezeSchedule(3, 2, 2, num_freezes=3), patch_fraction=0.5)

class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(index)
        return {"pixel_values_videos": torch.randint(0, 256, (4, 3, 16, 16), generator=g, dtype=torch.uint8),
                "context_ids": torch.randperm(32, generator=g)[:8], "target_ids": torch.randperm(32, generator=g)}

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

def digest(model):
    h = hashlib.sha256()
    for parameter in model.parameters():
        h.update(parameter.detach().numpy().tobytes())
    return h.hexdigest()

class Bytes(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        ddp = self.trainer.model_wrapped
        reduced = ddp._get_ddp_logging_data()["total_parameter_size_bytes"]
        learning = sum(p.numel() for p in self.trainer.model.parameters() if p.requires_grad)
        say("BYTES", args.process_index, state.global_step, type(ddp).__name__, reduced, 4 * learning)

def run(name, resume=None):
    set_seed(0)
    model = LayerLockViTForPretraining(LayerLockViTConfig.from_preset("tiny", **config))
    args = LayerLockTrainingArguments(
        output_dir=sys.argv[1], max_steps=10, per_device_train_batch_size=2, global_batch_size=int(sys.argv[2]),
        save_strategy="no" if resume else "steps", save_steps=1, logging_steps=1, report_to=[], use_cpu=True,
        learning_rate=1e-2, weight_decay=0.5, switch_warmup_steps=1, disable_tqdm=True)
    trainer = LayerLockTrainer(model, args, stages, Clips())
    if resume is None:
        callback = Bytes()
        callback.trainer = trainer
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume and f"{sys.argv[1]}/checkpoint-{resume}")
    say("DIGEST", args.process_index, name, digest(model))

def main():
    run("whole")
    for step in map(int, sys.argv[3:]):
        run(f"from-{step}", step)

run_and_exit(main)
"""


def launch(script, *arguments, options=(), timeout=240):
    """The lines that two processes on the CPU print."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    accelerate = str(Path(sys.executable).parent / "accelerate")
    command = [
        accelerate,
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    command += ["--dynamo_backend", "no", "--main_process_port", str(port), *options]
    result = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("global_batch_size, resume", [(4, (3, 4, 5)), (8, (5,))])
def test_two_processes_over_three_switches(tmp_path, global_batch_size, resume):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    lines = [line.split() for line in launch(script, tmp_path / "run", global_batch_size, *resume)]
    digests = {(line[2], line[1]): line[3] for line in lines if line and line[0] == "DIGEST"}
    names = ["whole", *(f"from-{step}" for step in resume)]
    assert set(digests) == {(name, rank) for name in names for rank in "01"}
    assert len(set(digests.values())) == 1, digests

    rows = [line[1:] for line in lines if line and line[0] == "BYTES"]
    assert len(rows) == 20
    assert {row[2] for row in rows} == {"DistributedDataParallel"}
    assert [row for row in rows if row[3] != row[4]] == []  # DDP reduces what learns and nothing else
    sizes = {int(row[1]): int(row[3]) for row in rows}
    assert sizes[1] > sizes[4] > sizes[6] > sizes[8] == 4 * (32 * 32 + 32)


def reports(lines):
    """The JSON of `toy_run`, among the logs that the Trainer prints."""
    return [json.loads(line) for line in lines if line.startswith('{"name"')]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path, capsys):
    """All methods in one launch: two processes of 2 clips, and this one of 4."""
    two, one = tmp_path / "two", tmp_path / "one"
    lines = reports(launch(HERE / "toy_run.py", two, 2, *METHODS, timeout=500))
    assert sorted((line["name"], line["rank"]) for line in lines) == sorted((n, r) for n in METHODS for r in (0, 1))
    assert {line["wrapper"] for line in lines} == {"DistributedDataParallel"}
    capsys.readouterr()
    toy_run.main(str(one), "4", *METHODS)
    alone = {line["name"]: line for line in reports(capsys.readouterr().out.splitlines())}
    for line in lines:
        name = line["name"]
        states = [torch.load(path) for path in (two / f"{name}-{line['rank']}.pt", one / f"{name}-0.pt")]
        torch.testing.assert_close(*states, atol=2e-4, rtol=2e-3)
        other = torch.load(two / f"{name}-{1 - line['rank']}.pt")
        assert all(torch.equal(v, other[part][n]) for part, values in states[0].items() for n, v in values.items())
        if line["rank"] == 0:  # which alone logs
            torch.testing.assert_close(line["rows"], alone[name]["rows"], atol=2e-4, rtol=2e-3)
