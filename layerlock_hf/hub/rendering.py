"""What a model card tells, and its text."""

from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from huggingface_hub import ModelCardData

from .results_table import Table
from .snippets import Snippet


TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ["layerlock", "video", "self-supervised-learning"]
LIBRARY = "transformers"
COST = (
    "floating-point operations, counted and not measured: forward and backward passes of all matrix products, a "
    "multiply-accumulate as 2, frozen layers forward only, targets included"
)


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. A section without facts is left out.

    Args:
        metadata: for the Hub.
        title: of the model.
        summary: what it is, in a sentence.
        use: what it is meant for, and its limits.
        architecture: names and texts.
        snippets: code that uses it.
        licence: of the weights.
        citations: BibTeX.
        notice: what is missing or unfinished, the first line; "" if nothing is.
        stages: rows of `stages.json`.
        data: that it was trained on.
        training: names and texts.
        commands: that trained it.
        evaluation: results.
        notes: on the training, in paragraphs.
    """

    metadata: ModelCardData
    title: str
    summary: str
    use: list[str]
    architecture: list[tuple[str, str]]
    snippets: list[Snippet]
    licence: str
    citations: list[str]
    notice: str = ""
    stages: list[dict] = field(default_factory=list)
    data: str = ""
    training: list[tuple[str, str]] = field(default_factory=list)
    commands: list[Snippet] = field(default_factory=list)
    evaluation: Table | None = None
    notes: list[str] = field(default_factory=list)


def render_card(facts: CardFacts) -> str:
    """The text of a card: metadata in YAML, then Markdown."""
    return render(TEMPLATE, card=facts)


def render(template: Path, **facts) -> str:
    """The text of a template with these facts, all of which it may name."""
    # Not `ModelCard.from_template`, which prints nothing for a name that is misspelt in the template
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(facts)
