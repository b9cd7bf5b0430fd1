"""The cards of the papers' configurations."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from layerlock_hf.hub.rendering import TEMPLATE, render_card
from layerlock_hf.pretraining.paper_cards import PAPER_CARDS, facts_of_recipe, write_paper_cards
from layerlock_hf.recipes import load_recipe


FOLDER = Path(__file__).resolve().parents[2] / "model_cards"
NAMES = sorted(PAPER_CARDS)
ALL = pytest.mark.parametrize("name", NAMES)
# Those of the papers, literally: Table 1 of LayerLock; a figure of the blockwise paper; notes on SALT
RESULTS = {
    "4ds-g-mae": [["63.1", "52.1", "1.02"], ["66.1", "56.3", "1.00"]],
    "4ds-e-mae": [["64.6", "54.4", "0.94"], ["67.1", "57.9", "0.98"]],
    "layerlock-4ds-g": [["63.1", "52.1", "1.02"], ["66.1", "56.3", "1.00"]],
    "layerlock-4ds-e": [["64.6", "54.4", "0.94"], ["67.1", "57.9", "0.98"]],
    "vjepa-l": [["52.1", "42.5", "1.57"], ["57.0", "43.5", "1.51"]],
    "layerlock-vjepa-l": [["52.1", "42.5", "1.57"], ["57.0", "43.5", "1.51"]],
    "salt-l": [["78.2"], ["75.1"]],
    "blockwise-tiny": [["32.8"], ["33.4"]],
    "blockwise-small": [["40.4"], ["43.0"]],
}


def committed(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


@ALL
def test_committed_cards_are_what_the_recipes_say(name):
    how = "`python -m layerlock_hf.pretraining.paper_cards model_cards` writes them anew"
    assert committed(name) == render_card(facts_of_recipe(name)), how


def test_there_is_a_card_per_configuration_and_the_template():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted([*NAMES, "template"])
    assert (FOLDER / "template.md").read_bytes() == TEMPLATE.read_bytes()


def test_cards_are_written(tmp_path, monkeypatch):
    card = {"blockwise-tiny": PAPER_CARDS["blockwise-tiny"]}
    monkeypatch.setattr("layerlock_hf.pretraining.paper_cards.PAPER_CARDS", card)
    write_paper_cards(tmp_path)
    assert (tmp_path / "blockwise-tiny.md").read_text(encoding="utf-8") == committed("blockwise-tiny")


@ALL
def test_cards_claim_no_weights_and_no_measurement(name):
    text = committed(name)
    card = ModelCard(text)
    assert str(card) == text
    assert card.data.eval_results is None
    assert card.text.lstrip().startswith("**No weights exist yet: ")
    assert "Not run by this project." in text and "from_pretrained" not in text
    assert not re.search(r"\b(None|nan)\b|{{|/home|/work|/tmp", text)
    if "## Evaluation" in text:
        assert text.split("## Evaluation\n\n")[1].startswith("**These are the paper's results**")


@ALL
def test_results_are_those_of_the_papers(name):
    table = PAPER_CARDS[name].results
    assert (None if table is None else [row[1:] for row in table.rows]) == RESULTS.get(name)


@ALL
def test_snippets_run_and_print_what_they_say(name, capsys):
    codes = re.findall(r"^```python\n(.*?)^```$", committed(name), re.MULTILINE | re.DOTALL)
    assert codes
    for code in codes:
        exec(code, {})
        expected = [line.split("  # ")[1] for line in code.splitlines() if line.startswith("print")]
        assert capsys.readouterr().out.splitlines() == expected


@ALL
def test_the_processes_of_the_command_share_the_batch(name):
    card = PAPER_CARDS[name]
    recipe, words = load_recipe(card.recipe), card.flags.split()
    processes = int(words[words.index("--num_processes") + 1]) if "--num_processes" in words else 1
    per_device = int(words[words.index("--per_device_train_batch_size") + 1])
    assert recipe["global_batch_size"] % (processes * per_device) == 0
    assert recipe.get("mask_group_size", per_device) % per_device == 0


def flops_of(name: str) -> float:
    cost = re.search(r"^\| cost \| ([\d.]+) × 10([⁰¹²³⁴⁵⁶⁷⁸⁹]+) ", committed(name), re.MULTILINE)
    return float(cost[1]) * 10 ** int(cost[2].translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))


def test_costs_are_those_counted_by_hand():
    """2.55e12 per clip of a 4DS-G under MAE, half as much again with its schedule's targets; SALT's own 0.165e21."""
    assert flops_of("4ds-g-mae") == pytest.approx(2.55e12 * 1e9, rel=0.03)
    assert flops_of("layerlock-4ds-g") / flops_of("4ds-g-mae") == pytest.approx(1.55, rel=0.05)
    assert flops_of("salt-l-teacher") == pytest.approx(0.165e21, rel=0.05)
