"""A pixel-stage training step against `transformers.VideoMAEForPreTraining` of the same shapes, and against the rate
of the machine's matrix multiplication.

python benchmarks/step_time.py --width 768 --heads 12 --batch_size 1

Both models: 8 layers on the 78 visible of 1,568 tokens (16 x 224 x 224, 95% masked), then 4 decoding layers of full
width, with the same activation. Both sides and the matrix product alternate in one process; medians are compared.
FLOPs are counted by `layerlock_hf.training.step_flops`.
"""

import argparse
import statistics
import time

import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from layerlock_hf import LayerLockViTConfig, LayerLockViTForPretraining
from layerlock_hf.training import step_flops


NUM_CONTEXT = 78  # 5% of 1,568
MATRIX_SIZE = 2048


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(width: int, heads: int, batch_size: int, repeats: int, bf16: bool):
    torch.manual_seed(0)
    config = LayerLockViTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_hidden_layers=12
    )
    ours = LayerLockViTForPretraining(config)
    ours.freeze_for(ours.pixel_stage)
    theirs = VideoMAEForPreTraining(
        VideoMAEConfig(
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            num_hidden_layers=8,
            decoder_hidden_size=width,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=4 * width,
            decoder_num_hidden_layers=4,
            hidden_act=config.hidden_act,
        )
    )
    video = torch.rand(batch_size, 16, 3, 224, 224)
    context_ids = torch.rand(batch_size, config.num_tokens).argsort(dim=1)[:, :NUM_CONTEXT]
    is_masked = torch.ones(batch_size, config.num_tokens, dtype=torch.bool).scatter(1, context_ids, False)
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE).to(dtype)

    def step(model, mask):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(video, mask).loss
        loss.backward()

    contenders = {
        "layerlock": lambda: step(ours, context_ids),
        "videomae": lambda: step(theirs, is_masked),
        "matmul": lambda: left @ right,
    }
    for function in contenders.values():
        function()
    times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            times[name].append(seconds(function))
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = [ours / theirs for ours, theirs in zip(times["layerlock"], times["videomae"], strict=True)]
    rate = batch_size * step_flops(config, ours.pixel_stage, [(NUM_CONTEXT, None)]) / median["layerlock"]
    matmul_rate = 2 * MATRIX_SIZE**3 / median["matmul"]
    print(f"width {width}, {batch_size} clips, {'bf16' if bf16 else 'fp32'}, {torch.get_num_threads()} threads")
    print(f"layerlock {median['layerlock']:.3f} s, videomae {median['videomae']:.3f} s a step")
    print(f"layerlock / videomae: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"{rate / 1e9:.0f} GFLOP/s of {matmul_rate / 1e9:.0f} GFLOP/s: {rate / matmul_rate:.2f} of the matmul rate")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bf16", action="store_true")
    main(**vars(parser.parse_args()))
