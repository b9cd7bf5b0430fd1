import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.utils.data import Dataset

from layerlock_hf.evaluation.features import EncodedFeatures
from layerlock_hf.evaluation.metrics import measure, score_classes
from layerlock_hf.evaluation.protocol import SweepArguments, SweepPoint, sweep_points
from layerlock_hf.evaluation.sweep import METRICS, PROGRESS, Sweep
from layerlock_hf.evaluation.tasks import Classification, Depth
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTModel


NUM_TEST = 7
ARGS = SweepArguments(
    learning_rates=[1e-3, 1e-2],
    depth_fractions=[0.5, 0.75, 1.0],  # 1, 3 and 5 layers of 6
    num_examples=48,
    batch_size=8,
    warmup_steps=2,
    logging_steps=2,
    save_steps=3,
)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = LayerLockViTConfig(
        image_size=16,
        num_frames=4,
        patch_size=8,
        tubelet_size=2,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=64,
        num_decoder_layers=1,
        readout_hidden_size=24,
        readout_num_attention_heads=3,
        decoding_patch_size=[2, 4, 4],
    )
    return LayerLockViTModel(config).eval().requires_grad_(False)


def clip_of(*key):
    generator = torch.Generator().manual_seed(hash(key) % 2**31)
    return torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)


class Clips(Dataset):
    """Clips of random pixels, of 3 classes by their brightness."""

    def __init__(self, num_clips, is_test):
        self.num_clips, self.is_test = num_clips, is_test

    def __len__(self):
        return self.num_clips

    def __getitem__(self, index):
        if self.is_test and index == 4:
            return {"index": index, "name": "the fifth", "error": "damaged", "kind": "damaged"}
        video = clip_of(self.is_test, index) // (1 + index % 3)
        item = {"pixel_values_videos": video[None] if self.is_test else video, "labels": self.label(index, video)}
        return item | ({"index": index} if self.is_test else {})

    def label(self, index, video):
        return index % 3


class DepthClips(Clips):
    def label(self, index, video):
        """The darker the further, unknown in a part of the picture that differs from clip to clip."""
        metres = torch.full((4, 16, 16), 200 / video.float().mean().item())
        metres[:, : index % 16] = 0
        return metres


TASKS = {"classification": (lambda config: Classification(config, 3), Clips), "depth": (Depth, DepthClips)}


def sweep(encoder, output, args=ARGS, points=None, task="classification", baselines=dict, **identity):
    build, clips = TASKS[task]
    output.mkdir(exist_ok=True)
    return Sweep(
        build(encoder.config),
        EncodedFeatures(encoder),
        points or sweep_points(args, 6),
        args,
        clips(args.num_examples, False),
        clips(NUM_TEST, True),
        output,
        identity,
        baselines,
    )


def assert_same(results, others, **tolerance):
    assert results.keys() == others.keys()
    for point, samples in results.items():
        for name, values in samples.items():
            torch.testing.assert_close(values.double(), others[point][name].double(), **tolerance)


@pytest.mark.parametrize("task", TASKS)
def test_members_learn_together_as_alone(encoder, tmp_path, task):
    """And the encoder does not learn, nor does it run beyond the deepest readout, nor once per readout."""
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    points = sweep_points(replace(ARGS, depth_fractions=[0.5, 0.75]), 6)
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(encoder.layers, start=1)
    ]
    together = sweep(encoder, tmp_path / "together", points=points, task=task)
    results = together.run()
    for hook in hooks:
        hook.remove()
    num_passes = ARGS.num_steps + 1  # and the test, of one batch
    assert [ran.count(number) for number in range(1, 7)] == 3 * [num_passes] + 3 * [0]
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    for point in points:
        alone = sweep(encoder, tmp_path / point.name, points=[point], task=task)
        assert_same(alone.run(), {point: results[point]}, rtol=0, atol=0)
        for mine, other in zip(
            alone.load_readout(point).parameters(), together.load_readout(point).parameters(), strict=True
        ):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("task", TASKS)
def test_neither_parts_of_batches_nor_rounds_change_results(encoder, tmp_path, task):
    """Not even where the parts differ in how many labels count."""
    expected = sweep(encoder, tmp_path / "whole", task=task).run()
    in_parts = sweep(encoder, tmp_path / "parts", replace(ARGS, micro_batch_size=2), task=task)
    assert_same(in_parts.run(), expected, rtol=1e-4, atol=1e-5)
    in_rounds = sweep(encoder, tmp_path / "rounds", replace(ARGS, max_parallel_readouts=4), task=task)
    assert [len(points) for points in in_rounds.rounds] == [4, 2]
    assert_same(in_rounds.run(), expected, rtol=0, atol=0)


class Stopped(Exception):
    pass


def rows(folder):
    return sorted((folder / METRICS).read_text().splitlines())


def always_the_first():
    """A baseline."""

    def score_samples(batch):
        probabilities = torch.tensor([[1.0, 0.0, 0.0]]).expand(len(batch["labels"]), 3)
        return score_classes(probabilities, batch["labels"], batch["index"])

    return {"first": score_samples}


@pytest.mark.parametrize("num_saves", range(1, 6))
def test_a_stopped_run_goes_on_bit_for_bit(encoder, tmp_path, monkeypatch, num_saves):
    """Stopped right after it saved so many times: within a round, before its test, and after it, of two rounds."""
    args = replace(ARGS, max_parallel_readouts=4, save_steps=4, logging_steps=3)
    whole = sweep(encoder, tmp_path / "whole", args, baselines=always_the_first)
    expected = whole.run()
    stopped = sweep(encoder, tmp_path / "stopped", args, baselines=always_the_first)
    save = stopped._save_progress

    calls = itertools.count(1)

    def stop(*arguments):
        save(*arguments)
        if next(calls) == num_saves:
            with (tmp_path / "stopped" / METRICS).open("a") as file:
                file.write('{"step": 5, "depth": 2, "lea')  # torn
            raise Stopped

    monkeypatch.setattr(stopped, "_save_progress", stop)
    with pytest.raises(Stopped):
        stopped.run()
    goes_on = sweep(encoder, tmp_path / "stopped", args, baselines=always_the_first)
    results = goes_on.run()
    assert_same(results, expected, rtol=0, atol=0)
    assert_same(goes_on.baseline_samples, whole.baseline_samples, rtol=0, atol=0)
    assert goes_on.errors == {4: "damaged"}
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    for path in (tmp_path / "whole" / "readouts").iterdir():
        assert path.read_bytes() == (tmp_path / "stopped" / "readouts" / path.name).read_bytes()
    finished = sweep(encoder, tmp_path / "stopped", args, baselines=None)  # which it does not ask for
    assert_same(finished.run(), expected, rtol=0, atol=0)
    assert_same(finished.baseline_samples, whole.baseline_samples, rtol=0, atol=0)


def test_a_folder_of_another_run_is_refused(encoder, tmp_path):
    sweep(encoder, tmp_path / "out", model="mine").run()
    with pytest.raises(ValueError, match=r"other settings \(model was 'mine' and is now 'yours'\): choose another"):
        sweep(encoder, tmp_path / "out", model="yours")


def test_seconds_of_all_starts_count(encoder, tmp_path):
    sweep(encoder, tmp_path / "out").run()
    path = tmp_path / "out" / PROGRESS
    torch.save(torch.load(path) | {"seconds": 1000.0}, path)
    assert 1000 < sweep(encoder, tmp_path / "out").seconds < 1100


def test_what_was_left_half_written_is_removed(encoder, tmp_path):
    run = sweep(encoder, tmp_path / "out")
    half = tmp_path / "out" / f"{PROGRESS}.0123abcd.new"
    half.write_bytes(b"half")
    run.run()
    assert not list((tmp_path / "out").rglob("*.new"))


@pytest.mark.parametrize("num_bytes", [0, 100, 8_000])
def test_a_damaged_checkpoint_is_named(encoder, tmp_path, num_bytes):
    sweep(encoder, tmp_path / "out").run()
    path = tmp_path / "out" / PROGRESS
    content = path.read_bytes()
    assert len(content) > num_bytes
    path.write_bytes(content[:num_bytes])
    with pytest.raises(ValueError, match=f"{PROGRESS} is damaged: delete it to start again"):
        sweep(encoder, tmp_path / "out")


def test_baselines_are_measured_on_the_same_items(encoder, tmp_path):
    run = sweep(encoder, tmp_path / "out", baselines=always_the_first)
    results = run.run()
    (rows,) = run.baseline_samples.values()
    assert all(torch.equal(rows["index"], samples["index"]) for samples in results.values())
    assert measure(Classification.metrics, rows)["top1"] == 3 / 6  # 0, 3 and 6 of 0 to 6, of which 4 is damaged


def test_what_is_logged(encoder, tmp_path):
    args = replace(ARGS, eval_steps=3, depth_fractions=[1.0])
    results = sweep(encoder, tmp_path / "out", args).run()
    lines = [json.loads(line) for line in rows(tmp_path / "out")]
    losses = [(line["step"], line["learning_rate"]) for line in lines if "loss" in line]
    assert sorted(losses) == [(step, rate) for step in (2, 4, 6) for rate in (1e-3, 1e-2)]
    tested = {(line["step"], line["learning_rate"]): line["top1"] for line in lines if "top1" in line}
    assert sorted(tested) == [(step, rate) for step in (3, 6) for rate in (1e-3, 1e-2)]
    for point, samples in results.items():
        assert samples["index"].tolist() == [0, 1, 2, 3, 5, 6]
        assert tested[6, point.learning_rate] == measure(Classification.metrics, samples)["top1"]


@pytest.mark.parametrize(("task", "metric"), [("classification", "log_loss"), ("depth", "abs_rel")])
def test_readouts_learn(encoder, tmp_path, task, metric):
    args = SweepArguments(
        learning_rates=[3e-3], depth_fractions=[0.5], num_examples=3200, batch_size=16, warmup_steps=9
    )
    (samples,) = sweep(encoder, tmp_path / "out", args, task=task).run().values()
    assert measure(TASKS[task][0](encoder.config).metrics, samples)[metric] < 0.12


class Flickering(Clips):
    """The last test clip can be read in the first round only, the one before it not in the first."""

    def __init__(self, is_first_round):
        super().__init__(NUM_TEST, True)
        self.is_first_round = is_first_round

    def __getitem__(self, index):
        item = super().__getitem__(index)
        is_lost = index == (NUM_TEST - 2 if self.is_first_round() else NUM_TEST - 1)
        return super().__getitem__(4) | {"index": index} if is_lost else item


def test_members_are_compared_on_what_could_be_read_for_all(encoder, tmp_path):
    run = sweep(encoder, tmp_path / "out", replace(ARGS, max_parallel_readouts=4, eval_steps=3))
    run.test = Flickering(lambda: not run.finished)
    results = run.run()
    assert sorted(run.errors) == [4, 5, 6]
    assert [samples["index"].tolist() for samples in results.values()] == 6 * [[0, 1, 2, 3]]


def test_nothing_to_test_is_an_error(encoder, tmp_path):
    """Before any training, if it shows so early."""
    run = sweep(encoder, tmp_path / "out")
    run.test = [{"index": 0, "name": "zero", "error": "empty", "kind": "empty"}]
    with pytest.raises(ValueError, match="none of 1 test items can be read, the first because of: empty"):
        run.run()
    assert not (tmp_path / "out" / METRICS).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("num_examples", 50),
        ("learning_rates", []),
        ("learning_rates", [1e-3, 0.001]),
        ("eval_steps", 0),
        ("warmup_steps", 6),
    ],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        replace(ARGS, **{name: value})


def test_a_batch_that_cannot_be_divided_is_refused(encoder, tmp_path):
    with pytest.raises(
        ValueError, match="batch_size must be a multiple of micro_batch_size=3 times 1 processes, got 8"
    ):
        sweep(encoder, tmp_path, replace(ARGS, micro_batch_size=3))
    assert not (tmp_path / PROGRESS).exists()


def test_the_learning_rate_warms_up_and_ends_low():
    args = SweepArguments(num_examples=320, batch_size=32, warmup_steps=4)
    rates = [args.learning_rate_at(step, 1e-3) for step in range(args.num_steps)]
    assert rates[:5] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert args.learning_rate_at(args.num_steps, 1e-3) == pytest.approx(1e-7)


def test_depths_of_the_paper():
    """The paper's layer 45 of 48 is what 44 have passed; where fractions share a depth it is read once."""
    points = sweep_points(SweepArguments(), 48)
    assert len(points) == 18
    assert SweepPoint(44, 0.95, 1e-4) in points
    shallow = sweep_points(SweepArguments(), 6)
    assert len({(point.depth, point.learning_rate) for point in shallow}) == len(shallow) < 18
