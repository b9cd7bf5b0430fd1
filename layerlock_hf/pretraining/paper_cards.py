"""Model cards of the papers' configurations, whose weights do not exist, from their recipes.

    python -m layerlock_hf.pretraining.paper_cards model_cards

writes them anew; a test compares what is committed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from ..analysis.cost import run_flops
from ..analysis.runs import PlannedRun
from ..hub.architecture import clip_row, layerlock_rows, parameter_row
from ..hub.citations import BLOCKWISE, LAYERLOCK, SALT, SCALING_4D, V_JEPA
from ..hub.rendering import COST, LIBRARY, TAGS, CardFacts, render_card
from ..hub.results_table import Table
from ..hub.snippets import Snippet
from ..hub.words import in_powers, keywords
from ..models import LayerLockViTConfig
from ..models.configuration_layerlock import architecture_fields
from ..recipes import load_recipe, paragraphs_of
from ..training.memory_plan import empty_model
from .build import describe_stages
from .planning import planned_run


@dataclass(frozen=True)
class Paper:
    """What cards say of a paper.

    Args:
        name: in a sentence.
        data: that it trained on.
        citations: BibTeX.
    """

    name: str
    data: str
    citations: tuple[str, ...]


FOUR_D = Paper(
    "the LayerLock paper",
    "The paper trained on 174 million web videos of its authors, which are not public.",
    (LAYERLOCK, SCALING_4D),
)
JEPA = Paper("the LayerLock paper", "The paper trained on Kinetics-700.", (LAYERLOCK, V_JEPA))
STATIC_TEACHERS = Paper(
    "the SALT paper (Rethinking JEPA)",
    "The paper trained on 3.6 million clips of Kinetics-710, Something-Something v2 and a part of Panda-70M, as other "
    "people's notes report.",
    (LAYERLOCK, SALT),
)
IN_BLOCKS = Paper(
    "the paper on blockwise training",
    "The paper trained on the training split of UCF101, without videos of fewer than 64 frames.",
    (LAYERLOCK, BLOCKWISE),
)


@dataclass(frozen=True)
class PaperCard:
    """What a recipe does not tell of a configuration of a paper.

    Args:
        title: of the model.
        recipe: its name.
        paper: that it is from.
        flags: of the command that trains it, beyond recipe, data and output.
        results: those of the paper, if it has any.
        hardware: that the paper trained it on, "" if that is not known.
    """

    title: str
    recipe: str
    paper: Paper
    flags: str
    results: Table | None
    hardware: str = ""


def _table_1(*rows: list[str]) -> Table:
    return Table(
        "**These are the paper's results** (Table 1 of LayerLock), not measurements of this project: readouts on the "
        "frozen encoder, the best of a sweep. Higher is better, but for ScanNet.",
        ["", "Something-Something v2, top-1 %", "Kinetics-700-2020, top-1 %", "ScanNet, AbsRel × 10"],
        list(rows),
    )


def _blockwise_results(name: str, in_blocks: str, end_to_end: str) -> Table:
    return Table(
        "**These are the paper's results**, read off a figure to some 0.3 points, not measurements of this project: a "
        "linear probe on the mean features of the last block.",
        ["", "UCF101, top-1 %"],
        [[f"{name}, 4 blocks at once", in_blocks], [f"{name}, end to end", end_to_end]],
    )


G_RESULTS = _table_1(["4DS-G (MAE)", "63.1", "52.1", "1.02"], ["4DS-G (MAE) with LayerLock", "66.1", "56.3", "1.00"])
E_RESULTS = _table_1(["4DS-e (MAE)", "64.6", "54.4", "0.94"], ["4DS-e (MAE) with LayerLock", "67.1", "57.9", "0.98"])
V_JEPA_RESULTS = _table_1(["V-JEPA-L", "52.1", "42.5", "1.57"], ["V-JEPA-L with LayerLock", "57.0", "43.5", "1.51"])
SALT_RESULTS = Table(
    "**These are the paper's results**, as other people's notes report them, not measurements of this project: the "
    "mean of six tasks (Kinetics-400, Something-Something v2, Diving48, COIN, ImageNet-1k, Jester), each with an "
    "attentive probe on the frozen encoder.",
    ["", "mean of six tasks, %"],
    [
        ["SALT ViT-L: 40,000 steps of the teacher and 200,000 of the student", "78.2"],
        ["V-JEPA 2 ViT-L, 240,000 steps on the same data", "75.1"],
    ],
)
EIGHT_GPUS = "--num_processes 8 --per_device_train_batch_size"
ONE_GPU = "--per_device_train_batch_size 64"
V6, V3 = "256 TPUs v6", "256 TPUs v3"
PAPER_CARDS = {
    "layerlock-4ds-g": PaperCard("LayerLock 4DS-G", "4ds-g-layerlock", FOUR_D, f"{EIGHT_GPUS} 32", G_RESULTS, V6),
    "layerlock-4ds-e": PaperCard("LayerLock 4DS-e", "4ds-e-layerlock", FOUR_D, f"{EIGHT_GPUS} 32", E_RESULTS, V6),
    "4ds-g-mae": PaperCard("4DS-G, plain MAE", "4ds-g-mae", FOUR_D, f"{EIGHT_GPUS} 32", G_RESULTS),
    "4ds-e-mae": PaperCard("4DS-e, plain MAE", "4ds-e-mae", FOUR_D, f"{EIGHT_GPUS} 32", E_RESULTS),
    "layerlock-vjepa-l": PaperCard(
        "LayerLock V-JEPA-L", "vjepa-l-layerlock", JEPA, f"{EIGHT_GPUS} 8", V_JEPA_RESULTS, V3
    ),
    "vjepa-l": PaperCard("V-JEPA-L on Kinetics-700", "vjepa-l", JEPA, f"{EIGHT_GPUS} 8", V_JEPA_RESULTS, V3),
    "salt-l-teacher": PaperCard(
        "SALT ViT-L, the teacher", "salt-l-teacher", STATIC_TEACHERS, f"{EIGHT_GPUS} 24", None
    ),
    "salt-l": PaperCard(
        "SALT ViT-L, the student",
        "salt-l",
        STATIC_TEACHERS,
        f"{EIGHT_GPUS} 24 --teacher runs/salt-l-teacher",
        SALT_RESULTS,
    ),
    "blockwise-tiny": PaperCard(
        "Blockwise DeiT-Tiny",
        "ucf101-tiny-4-blocks",
        IN_BLOCKS,
        ONE_GPU,
        _blockwise_results("DeiT-Tiny", "32.8", "33.4"),
    ),
    "blockwise-small": PaperCard(
        "Blockwise DeiT-Small",
        "ucf101-small-4-blocks",
        IN_BLOCKS,
        ONE_GPU,
        _blockwise_results("DeiT-Small", "40.4", "43.0"),
    ),
}


def facts_of_recipe(name: str) -> CardFacts:
    """What a card of `PAPER_CARDS` tells."""
    card = PAPER_CARDS[name]
    recipe = load_recipe(card.recipe)
    run = planned_run(recipe, card.recipe)
    config, model = run.config, empty_model(run.config)
    counts = {part: sum(tensor.numel() for tensor in module.parameters()) for part, module in model.named_children()}
    return CardFacts(
        metadata=ModelCardData(
            license="apache-2.0", library_name=LIBRARY, pipeline_tag="feature-extraction", tags=TAGS
        ),
        title=card.title,
        summary=f"A video transformer as {card.paper.name} trains it, without labels.",
        use=[
            "Meant, once it is trained, for features of short videos, on which heads for other tasks are trained.",
            "Nothing can be said of its quality, bias or safety before there are weights.",
        ],
        architecture=[
            *layerlock_rows(config, decodes=True),
            clip_row(config, {"frame_stride": recipe["frame_stride"]}),
            parameter_row(counts),
        ],
        snippets=[_model_snippet(config, recipe, sum(counts.values()))],
        licence="The recipe and the code are under the Apache License 2.0. There are no weights to license.",
        citations=list(card.paper.citations),
        notice=f"No weights exist yet: this is a plan, the recipe {card.recipe}, which this project has not run.",
        stages=describe_stages(model, run.stages),
        data=f"{card.paper.data} With this recipe it is whatever videos you give it.",
        training=_training(card, run),
        commands=_commands(card),
        evaluation=card.results,
        notes=paragraphs_of(card.recipe)[1:],  # the first holds results, which belong to the table
    )


def _training(card: PaperCard, run: PlannedRun) -> list[tuple[str, str]]:
    clips = run.max_steps * run.global_batch_size
    means = [run.mean(lambda sizes, kind=kind: sizes[kind][0]) for kind in range(len(run.masks[0]))]
    first, *others = (f"{number:,.0f}" for number in means)
    seen = f"the encoder sees {first} of {run.config.num_tokens:,} tokens"
    seen += "".join(f", in another pass {number}" for number in others)
    seen += ", on average" if len({*run.masks}) > 1 else ""
    theirs = f"The paper used {card.hardware}; its hours" if card.hardware else "The paper's hardware and hours"
    return [
        ("recipe", f"{card.recipe}, a file of settings of `layerlock_hf`"),
        (
            "steps of the optimizer",
            f"{run.max_steps:,}, each with {run.global_batch_size:,} clips: {clips:,} clips in all",
        ),
        ("masks", seen),
        ("hardware and hours", f"Not run by this project. {theirs} are not known here."),
        ("cost", f"{in_powers(run_flops(run) * run.global_batch_size, digits=2)} {COST}"),
    ]


def _commands(card: PaperCard) -> list[Snippet]:
    words = f"--config {card.recipe} --train_data videos --output_dir runs/{card.recipe}"
    command = f"layerlock pretrain {words} \\\n    {card.flags}"
    return [
        Snippet("One step of every stage, to see what each costs on your machine:", f"{command} --rehearse", "bash"),
        Snippet(
            "The whole run; the number of processes and their batch size are an example. Then `AutoModel` loads the "
            "encoder from the output folder:",
            command,
            "bash",
        ),
    ]


def _model_snippet(config: LayerLockViTConfig, recipe: dict, num_parameters: int) -> Snippet:
    preset = LayerLockViTConfig.from_preset(recipe["preset"])
    changed = {
        name: recipe[name]
        for name in recipe.keys() & architecture_fields().keys()
        if getattr(config, name) != getattr(preset, name)
    }
    given = [keywords({name: changed[name]}) for name in sorted(changed)]
    arguments = [f'"{recipe["preset"]}"', *given]
    made = "".join(f"\n    {argument}," for argument in arguments) + "\n" if given else arguments[0]
    side, frames = config.image_size, config.num_frames
    return Snippet(
        "The untrained model, with the package `layerlock_hf` installed. On the device “meta” tensors have shapes and "
        "no numbers, so that any machine can hold it; without that line the weights are random:",
        f"""import torch
from layerlock_hf import LayerLockViTConfig, LayerLockViTForPretraining

config = LayerLockViTConfig.from_preset({made})
with torch.device("meta"):
    model = LayerLockViTForPretraining(config)
    features = model.encoder(torch.rand(1, {frames}, 3, {side}, {side})).last_hidden_state
print(f"{{model.num_parameters():,}}")  # {num_parameters:,}
print(list(features.shape))  # [1, {config.num_tokens}, {config.hidden_size}]
""",
    )


def write_paper_cards(folder: Path):
    """Write all cards, as NAME.md."""
    for name in PAPER_CARDS:
        (folder / f"{name}.md").write_text(render_card(facts_of_recipe(name)), encoding="utf-8")


if __name__ == "__main__":
    write_paper_cards(Path(sys.argv[1]))
