"""What a GPU must hold to train by a recipe, stage by stage: counted without one, and without allocating anything.

python benchmarks/memory_plan.py --config 4ds-g-layerlock

Weights, gradients and AdamW's moments are exact counts over the real model; activations are what autograd keeps of its
forward pass on fake tensors. Not counted: what operations need while they run (targets included), fragments, CUDA and
NCCL; `USABLE` leaves a share of the card to them. GB are 10^9 bytes. Nothing here was measured on a GPU.
"""

import argparse

from layerlock_hf import LayerLockViTConfig
from layerlock_hf.data import MaskArguments
from layerlock_hf.models import Stage
from layerlock_hf.models.configuration_layerlock import architecture_fields
from layerlock_hf.recipes import load_recipe
from layerlock_hf.training import StageArguments
from layerlock_hf.training.memory_plan import activation_bytes, empty_model, gathered_bytes, state_bytes


USABLE = 0.85


def from_recipe(path: str) -> tuple[LayerLockViTConfig, list[Stage], list, bool]:
    """Configuration, stages, masks of one clip, and whether it trains under bf16 autocast."""
    recipe = load_recipe(path)

    def given(names):
        return {name: recipe[name] for name in names if recipe.get(name) is not None}

    config = LayerLockViTConfig.from_preset(recipe.get("preset", "4ds-b"), **given(architecture_fields()))
    masks = MaskArguments(**given(MaskArguments.__dataclass_fields__)).build()(config.grid_size, [0], 0)
    arguments = StageArguments(**given(StageArguments.__dataclass_fields__))
    stages = arguments.build(config, max_steps=recipe.get("max_steps"))
    return config, stages, masks, bool(recipe.get("bf16"))


def most_clips(gigabytes: int, fixed: int, per_clip: int) -> int:
    """The largest power of two of clips per rank that fits, 0 if none does."""
    num_clips = max(0, int((USABLE * gigabytes * 1e9 - fixed) / per_clip))
    return 1 << num_clips.bit_length() >> 1


def plan(path: str, cards: list[int], num_ranks: list[int]) -> list[dict]:
    """A row for the first, the middle and the last stage of a recipe; bytes as integers."""
    config, stages, masks, bf16 = from_recipe(path)
    model, rows = empty_model(config), []
    for stage in (stages[index] for index in sorted({0, len(stages) // 2, len(stages) - 1})):
        model.freeze_for(stage)
        state = state_bytes(model)
        whole = sum(state.values())
        # Clip by clip and step by step, without checkpointing and with it
        clips, steps = zip(*(activation_bytes(config, stage, masks, bf16, on) for on in (False, True)), strict=True)
        ways = {"one GPU": (whole, steps), "DDP": (whole + state["gradients"], steps)}
        for ranks in num_ranks:  # whose weights are bf16 when they are gathered
            ways[f"FSDP2 on {ranks}"] = sum(state_bytes(model, ranks).values()) + gathered_bytes(model, bf16), (0, 0)
        row = {"from step": str(stage.start), "frozen layers": str(stage.num_frozen), **state}
        row |= {"frozen, with `frozen_dtype`": state["frozen"] // 2, "DDP's buckets": state["gradients"]}
        row |= {"bf16 copies": steps[0], "activations of a clip": clips[0], "the same, checkpointed": clips[1]}
        row |= {f"all but activations, {way}": fixed for way, (fixed, _) in ways.items()}
        for card in cards:
            for way, (fixed, extra) in ways.items():
                fits = [str(most_clips(card, fixed + extra[on], clips[on])) for on in (False, True)]
                row[f"most clips, {card} GB, {way}"] = " / ".join(fits)
        rows.append(row)
    return rows


def main(config: str, cards: list[int], num_ranks: list[int]):
    rows = plan(config, cards, num_ranks)
    for name in rows[0]:
        cells = [row[name] if isinstance(row[name], str) else f"{row[name] / 1e9:.2f}" for row in rows]
        print(f"| {' | '.join([name, *cells])} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--cards", type=int, nargs="+", default=[80, 141], help="GB of a GPU.")
    parser.add_argument("--num_ranks", type=int, nargs="+", default=[8, 64], help="GPUs that share the model (FSDP2).")
    main(**vars(parser.parse_args()))
