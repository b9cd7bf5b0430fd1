"""Several processes on the CPU, under DDP and FSDP2: what one process cannot show. Each launch runs many jobs."""

import shutil

import pytest
import torch
from launching import fork_jobs, launch_jobs, read_reports
from safetensors.torch import load_file
from toy_methods import CHECKPOINTING, METHODS
from toy_run import Job, run
from transformers import AutoModel

from layerlock_hf.models import LayerLockViTForPretraining
from layerlock_hf.training.export import load_sharded


WRAPPERS = {"ddp": "DistributedDataParallel", "sharded": "FSDPLayerLockViTForPretraining"}
WRAPPERS["full"] = WRAPPERS["configured"] = WRAPPERS["sharded"]
# Of nine steps with switches at 3, 5 and 7: in the first stage, at a border, within a stage, in the last one
SAVE_AT = (2, 3, 4, 8)
MAX_STEPS = 9
CLIPS_PER_STEP = 8  # of three processes 6


def settings(processes, **others):
    per_device = CLIPS_PER_STEP // processes
    return {"max_steps": MAX_STEPS, "per_device_train_batch_size": per_device, "save_stages": True, **others}


def resumed_runs(wrapper, processes):
    """A run and what goes on from its checkpoints."""
    whole = f"{wrapper}-{processes}"
    jobs = [{"name": whole, "wrapper": wrapper, "save_at": SAVE_AT, "settings": settings(processes)}]
    for step in SAVE_AT:
        checkpoint = f"{whole}/checkpoint-{step}"
        jobs.append({**jobs[0], "name": f"{whole}-from-{step}", "resume": checkpoint, "save_at": ()})
    return jobs


def moved(wrapper, processes):
    """What goes on from a checkpoint of two processes on another number of them."""
    job = {"name": f"{wrapper}-2-to-{processes}", "wrapper": wrapper, "settings": settings(processes)}
    return [{**job, "resume": f"{wrapper}-2/checkpoint-4"}]


def unclipped(name, wrapper, **others):
    return {
        "name": name,
        "wrapper": wrapper,
        "settings": settings(2, max_grad_norm=0.0, **others),
        "watch": True,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two(folder):
    accumulated = {
        "name": "accumulated",
        "settings": settings(2, global_batch_size=8) | {"per_device_train_batch_size": 2},
    }
    teacher = {"name": "teacher", "wrapper": "sharded", "method": "vjepa_locked", "settings": settings(2)}
    bf16 = settings(2, bf16=True)
    jobs = [
        # First, because what a job asks for beside the configuration stays in the environment
        {"name": "bf16-configured", "wrapper": "configured", "settings": bf16},
        *resumed_runs("ddp", 2),
        *resumed_runs("sharded", 2),
        *resumed_runs("full", 2),
        {**accumulated, "save_at": [4]},
        {**accumulated, "name": "accumulated-from-4", "resume": "accumulated/checkpoint-4"},
        {**teacher, "save_at": [4]},
        {**teacher, "name": "teacher-from-4", "resume": "teacher/checkpoint-4"},
        unclipped("unclipped-ddp", "ddp"),
        unclipped("unclipped-sharded", "sharded"),
        unclipped("checkpointing", "sharded", **{CHECKPOINTING: True}),
        {"name": "bf16-ddp", "settings": bf16},
    ]
    return launch_jobs(folder, jobs, processes=2)


@pytest.fixture(scope="module")
def three(folder):
    return fork_jobs(folder, resumed_runs("ddp", 3), processes=3)


@pytest.fixture(scope="module")
def four(folder, two):
    jobs = [*resumed_runs("ddp", 4), *resumed_runs("sharded", 4), *moved("ddp", 4), *moved("sharded", 4)]
    return fork_jobs(folder, jobs, processes=4)


@pytest.fixture(scope="module")
def one(folder, two):
    return launch_jobs(folder, moved("sharded", 1), processes=1)


def digests(runs, name):
    return {report["digest"] for report in runs[name]}


@pytest.mark.slow
@pytest.mark.parametrize("run", ["ddp-2", "ddp-3", "ddp-4", "sharded-2", "full-2", "sharded-4"])
def test_resume_is_bit_identical(run, request):
    runs = request.getfixturevalue({"2": "two", "3": "three", "4": "four"}[run[-1]])
    assert {report["wrapper"] for report in runs[run]} == {WRAPPERS[run.split("-")[0]]}
    (whole,) = digests(runs, run)
    for step in SAVE_AT:
        assert digests(runs, f"{run}-from-{step}") == {whole}, step
        assert runs[f"{run}-from-{step}"][0]["losses"] == runs[run][0]["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["accumulated", "teacher"])
def test_so_it_is_with_accumulation_and_with_a_sharded_teacher(two, run):
    assert digests(two, f"{run}-from-4") == digests(two, run)
    assert len(digests(two, run)) == 1


@pytest.mark.slow
def test_what_is_communicated_and_kept_is_what_learns(two):
    for name in ("unclipped-ddp", "unclipped-sharded", "checkpointing"):
        for report in two[name]:
            for row in report["rows"]:
                assert row["reduced"] == row["learning"], name  # no padding: these layers can be halved
                assert row["moments"] == 2 * row["learning"] / (1 if name == "unclipped-ddp" else 2)
                assert (row["moved"], row["wrong_gradients"]) == ([], [])
                assert (row["plain"] == []) == (name != "unclipped-ddp")
    sizes = [row["reduced"] for row in two["unclipped-sharded"][0]["rows"]]
    assert sizes[2] > sizes[3] > sizes[5] > sizes[7] == 4 * (32 * 32 + 32)


@pytest.mark.slow
def test_fsdp_does_what_ddp_does(two):
    assert digests(two, "unclipped-sharded") == digests(two, "unclipped-ddp") == digests(two, "checkpointing")
    heads = [[row["heads"] for row in two[f"unclipped-{wrapper}"][0]["rows"]] for wrapper in ("ddp", "sharded")]
    assert heads[0] == heads[1]  # at the beginning of each step, after a switch
    assert digests(two, "sharded-2") == digests(two, "full-2")
    # The norm that clips is summed in another order
    for name in ("losses", "grad_norms"):
        assert two["sharded-2"][0][name] == pytest.approx(two["ddp-2"][0][name], rel=1e-6)
    # Autocast rounds what it computes; FSDP2 rounds the parameters of norms, too
    losses = [two[f"bf16-{wrapper}"][0]["losses"] for wrapper in ("ddp", "configured")]
    assert losses[1][0] == losses[0][0] and losses[1] == pytest.approx(losses[0], rel=0.02)
    assert two["bf16-configured"][0]["wrapper"] == WRAPPERS["configured"]


@pytest.mark.slow
@pytest.mark.parametrize("run, processes", [("ddp", 4), ("sharded", 4), ("sharded", 1)])
def test_on_another_number_of_processes(two, run, processes, request):
    reports = request.getfixturevalue({1: "one", 4: "four"}[processes])[f"{run}-2-to-{processes}"]
    assert {report["wrapper"] for report in reports} == {WRAPPERS[run]}
    assert reports[0]["losses"] == pytest.approx(two[f"{run}-2"][0]["losses"], rel=1e-5)
    read_in(reports, CLIPS_PER_STEP // processes, first_step=4)
    read_in(two[f"{run}-2"], CLIPS_PER_STEP // 2, first_step=0)


def read_in(reports, per_device, first_step):
    """Whether the processes together have read the clips of every step, each clip once."""
    for step in range(first_step, MAX_STEPS):
        begin = (step - first_step) * per_device
        read = sorted(index for report in reports for index in report["read"][begin : begin + per_device])
        assert read == list(range(step * CLIPS_PER_STEP, (step + 1) * CLIPS_PER_STEP)), step


@pytest.mark.slow
def test_on_one_process_without_a_launch(two, folder):
    (job,) = moved("ddp", 1)
    report = run_here(job, folder)
    assert report["losses"] == pytest.approx(two["ddp-2"][0]["losses"], rel=1e-5)
    job["settings"]["per_device_train_batch_size"] = 4
    with pytest.raises(ValueError, match="written with clips_per_step 8, but it is now 4"):
        run(Job(**job), str(folder))
    with pytest.raises(ValueError, match="as optimizer_0, pytorch_model_fsdp_0, but this run would load model.safe"):
        run(Job(**{**moved("sharded", 1)[0], "wrapper": "ddp"}), str(folder))


def run_here(job, folder):
    """The report of a job that this process runs alone."""
    run(Job(**job), str(folder))
    return read_reports(folder, [job])[job["name"]][0]


@pytest.mark.slow
def test_stages_are_kept_as_they_begin(two, folder):
    for number in range(4):
        name = f"stages/stage-{number}/model.safetensors"
        full, sharded = (load_file(folder / f"{wrapper}-2" / name) for wrapper in ("full", "sharded"))
        assert full.keys() == sharded.keys() and all(torch.equal(full[key], sharded[key]) for key in full)
    before = load_file(folder / "full-2" / "checkpoint-3" / "model.safetensors")  # where the first switch is
    kept = load_file(folder / "full-2" / "stages" / "stage-1" / "model.safetensors")
    encoder = [name for name in kept if name.startswith("encoder.")]
    assert encoder and all(torch.equal(kept[name], before[name]) for name in encoder)


@pytest.mark.slow
def test_models_are_whole(two, folder, tmp_path):
    saved = {
        wrapper: load_file(folder / f"{wrapper}-2" / "end" / "model.safetensors") for wrapper in ("full", "sharded")
    }
    assert (
        saved["full"].keys()
        == LayerLockViTForPretraining.from_pretrained(folder / "ddp-2" / "end").state_dict().keys()
    )
    assert all(torch.equal(tensor, saved["sharded"][name]) for name, tensor in saved["full"].items())
    (first, *_) = SAVE_AT
    assert not list((folder / "full-2" / f"checkpoint-{first}").glob("*fsdp*"))  # a second copy of the weights
    for wrapper in ("ddp", "full", "sharded"):
        _, loading = AutoModel.from_pretrained(folder / f"{wrapper}-2" / "end", output_loading_info=True)
        assert not loading["missing_keys"]

    checkpoint = folder / "sharded-2" / "checkpoint-8"
    load_sharded(checkpoint).save_pretrained(tmp_path / "exported")
    expected = load_file(folder / "full-2" / "checkpoint-8" / "model.safetensors")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="has no pytorch_model_fsdp_0"):
        load_sharded(folder / "full-2" / "checkpoint-8")
    shutil.copytree(checkpoint, tmp_path / "torn")
    (tmp_path / "torn" / "pytorch_model_fsdp_0" / "__1_0.distcp").unlink()
    with pytest.raises(ValueError, match="is not complete"):
        load_sharded(tmp_path / "torn")


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """All methods, under DDP and FSDP2, in one launch: two processes of 2 clips, and this one of 4."""

    def jobs(batch_size, **others):
        settings = {
            "max_steps": 8,
            "per_device_train_batch_size": batch_size,
            "global_batch_size": 4,
            "adam_epsilon": 1e-3,  # gradients that are nothing but rounding must not become steps
        }
        return [{"name": name, "method": name, "keep": True, "settings": settings, **others} for name in METHODS]

    sharded = [{**job, "name": f"{job['method']}-sharded"} for job in jobs(2, wrapper="sharded", watch=True)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    reports = fork_jobs(tmp_path / "two", jobs(2) + sharded)
    alone = {job["name"]: run_here(job, tmp_path / "one") for job in jobs(4)}
    for name in reports:
        method = name.removesuffix("-sharded")
        expected = torch.load(tmp_path / "one" / f"{method}-0.pt")
        states = [torch.load(tmp_path / "two" / f"{name}-{rank}.pt") for rank in (0, 1)]
        torch.testing.assert_close(states[0], expected, atol=2e-4, rtol=2e-3)
        assert all(torch.equal(v, states[1][part][n]) for part, values in states[0].items() for n, v in values.items())
        for what in ("losses", "grad_norms", "num_frozen"):  # only the main process logs
            torch.testing.assert_close(reports[name][0][what], alone[method][what], atol=2e-4, rtol=2e-3)
        assert {report["wrapper"] for report in reports[name]} == {WRAPPERS["ddp" if name == method else "sharded"]}
        for row in (row for report in reports[name] for row in report["rows"]):
            assert row["learning"] <= row["reduced"] <= 1.01 * row["learning"]
            # Two moments, each in two parts, of which the second may be the smaller one
            assert row["moments"] == pytest.approx(row["learning"], rel=0.01)
            assert (row["moved"], row["wrong_gradients"], row["plain"]) == ([], [], [])
