"""How much faster a sweep of readouts is together than one by one, beside what counting FLOPs predicts.

python benchmarks/readout_sweep.py --preset 4ds-b --task classification --num_steps 3 --batch_size 2

Trains all points of a sweep (3 learning rates x 6 depths) from one frozen pass, and each of them by itself, on the
same random clips in memory, for the same steps, with a test of one clip at the end. Prints seconds, FLOPs (2 per
multiply-accumulate), both ratios, and how far the losses and the predictions of both ways are apart.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from layerlock_hf.evaluation import Sweep, SweepArguments, sweep_points
from layerlock_hf.evaluation.features import EncodedFeatures
from layerlock_hf.evaluation.sweep import METRICS
from layerlock_hf.evaluation.tasks import Classification, Depth
from layerlock_hf.models import LayerLockViTConfig, LayerLockViTModel


NUM_CLASSES = 174
# Width and heads of the readouts (LayerLock, Table 11)
READOUTS = {"classification": (768, 12), "depth": (1024, 16)}
# The counter knows attention on GPUs alone, and takes that on CPUs for free
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
ATTENTION_ON_CPU = {
    ATTENTION: lambda *shapes, **others: sdpa_flop_count(*shapes[:3]),
    ATTENTION_BACKWARD: lambda *shapes, **others: sdpa_backward_flop_count(*shapes[:4]),
}


class Clips(Dataset):
    """Random clips; as test items with an index and the dimension of clips."""

    def __init__(self, config, task: str, num_clips: int, is_test: bool):
        generator = torch.Generator().manual_seed(int(is_test))
        size = (config.num_frames, config.image_size, config.image_size)
        self.items = []
        for index in range(num_clips):
            video = torch.randint(0, 256, (size[0], 3, *size[1:]), generator=generator, dtype=torch.uint8)
            metres = 0.1 + 5 * torch.rand(size, generator=generator)
            item = {
                "pixel_values_videos": video,
                "labels": index % NUM_CLASSES if task == "classification" else metres,
            }
            if is_test:
                item |= {"pixel_values_videos": video[None], "index": index}
            self.items.append(item)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def run(encoder, task, task_name, points, args) -> tuple[dict, float]:
    """What the points lost and predict, as numbers by name, and the seconds it took."""
    training = Clips(encoder.config, task_name, args.num_examples, is_test=False)
    test = Clips(encoder.config, task_name, 1, is_test=True)
    with tempfile.TemporaryDirectory() as output:
        sweep = Sweep(task, EncodedFeatures(encoder), points, args, training, test, Path(output), {})
        synchronize()
        start = time.perf_counter()
        samples = sweep.run()
        synchronize()
        seconds = time.perf_counter() - start
        rows = [json.loads(line) for line in (Path(output) / METRICS).read_text().splitlines()]
    found = {(row["depth"], row["learning_rate"], "loss", row["step"]): row["loss"] for row in rows if "loss" in row}
    for point, results in samples.items():
        found |= {(point.depth, point.learning_rate, name): values.item() for name, values in results.items()}
    return found, seconds


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="4ds-b")
    parser.add_argument("--task", choices=list(READOUTS), default="classification")
    parser.add_argument("--num_steps", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--num_runs", type=int, default=1, help="Repetitions; medians are compared.")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    width, heads = READOUTS[options.task]
    torch.manual_seed(0)
    config = LayerLockViTConfig.from_preset(
        options.preset, readout_hidden_size=width, readout_num_attention_heads=heads
    )
    encoder = LayerLockViTModel(config).eval().requires_grad_(False)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    task = Classification(config, NUM_CLASSES) if options.task == "classification" else Depth(config)
    args = SweepArguments(
        num_examples=options.num_steps * options.batch_size,
        batch_size=options.batch_size,
        warmup_steps=0,
        bf16=options.bf16,
    )
    points = sweep_points(args, config.num_hidden_layers)
    groups = {"together": [points], "one by one": [[point] for point in points]}

    flops, found, times = {}, {}, {name: [] for name in groups}
    for name, parts in groups.items():
        # With the first, slow, passes
        with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
            for part in parts if name == "together" else parts[:: len(args.learning_rates)]:
                run(encoder, task, options.task, part, args)
        flops[name] = counter.get_total_flops()
    flops["one by one"] *= len(args.learning_rates)  # those of a depth cost the same
    for _ in range(options.num_runs):  # in turns, so that what slows the machine down slows both
        for name, parts in groups.items():
            results = [run(encoder, task, options.task, part, args) for part in parts]
            times[name].append(sum(time for _, time in results))
            found[name] = {key: value for values, _ in results for key, value in values.items()}
    seconds = {name: statistics.median(values) for name, values in times.items()}

    if found["together"].keys() != found["one by one"].keys():
        raise SystemExit("error: the two ways did not train and test the same readouts")
    differences = torch.tensor([value - found["one by one"][key] for key, value in found["together"].items()])
    print(f"{options.preset}, {options.task}, {len(points)} readouts, {options.num_steps} steps of {args.batch_size}")
    for name in groups:
        print(f"{name:12} {seconds[name]:8.1f} s{flops[name] / 1e12:10.3g} TFLOP")
    measured = seconds["one by one"] / seconds["together"]
    predicted = flops["one by one"] / flops["together"]
    print(f"speed-up {measured:.2f}, by FLOPs {predicted:.2f}: {measured / predicted:.0%}")
    print(f"largest difference of {len(differences)} losses and predictions: {differences.abs().max():g}")


if __name__ == "__main__":
    main()
