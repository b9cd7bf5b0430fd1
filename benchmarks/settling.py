"""Peak memory and processor time of a blockwise step, with each block backpropagated before the next runs, or not.

python benchmarks/settling.py

A ViT-S of 12 layers in 4 blocks, each with a predictor of 4 layers of width 192 (BWSSL), on clips of 16 x 224 x 224 of
which 90% is masked by tubes. Each side runs in a process of its own with one thread. The first figure is its
resident peak above what is resident before the steps: activations and gradients. The second is processor time.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch

from layerlock_hf import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.data import TubeMask
from layerlock_hf.training import blockwise
from layerlock_hf.utils.memory import peak_memory_gib, reset_peak_memory


DEPTHS = [3, 6, 9, 12]


def measure(batch_size: int, settle_blocks: bool, repeats: int) -> tuple[float, float]:
    """Peak above the start in GiB, and median processor seconds of a step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LayerLockViTConfig.from_preset(
        "4ds-s",
        decoder="predictor",
        predictor_depths=DEPTHS,
        predictor_hidden_size=192,
        predictor_num_attention_heads=3,
        use_final_norm=True,
    )
    model = LayerLockViTForPretraining(config)
    (stage,) = blockwise(DEPTHS)
    model.freeze_for(stage)
    ((context_ids, target_ids),) = TubeMask(0.9)(config.grid_size, range(batch_size), 0)
    video = torch.rand(batch_size, 16, 3, 224, 224)
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    start, seconds = peak_memory_gib(cpu), []
    for _ in range(repeats):
        model.zero_grad()
        begin = time.process_time()
        model(video, context_ids, target_ids, stage=stage, settle_blocks=settle_blocks).loss.backward()
        seconds.append(time.process_time() - begin)
    return peak_memory_gib(cpu) - start, statistics.median(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["plain", "settled"])
    args = parser.parse_args()
    if args.side is not None:
        gib, seconds = measure(args.batch_size, args.side == "settled", args.repeats)
        print(f"{args.side}: {gib:.3f} GiB, {seconds:.2f} s of processor time a step", flush=True)
    else:
        for side in ("plain", "settled"):
            flags = ["--batch_size", str(args.batch_size), "--repeats", str(args.repeats), "--side", side]
            subprocess.run([sys.executable, __file__, *flags], check=True)
