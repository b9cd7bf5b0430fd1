"""A recipe and flags: which wins, and what is said of mistakes."""

from dataclasses import dataclass
from typing import Literal

import pytest

from layerlock_hf.recipes.settings import SettingsParser, UsageError, given_with_recipe, parse_with_recipe


@dataclass
class Toys:
    train_data: str
    mask: str = "tube"
    mask_ratio: float | None = None
    pixel_mean: list[float] | None = None
    decoder: Literal["trunk", "predictor"] | None = None
    position_embedding: Literal["rope", "none"] | None = None
    normalize: bool | None = None


def toys(recipe, *flags):
    parser = SettingsParser(Toys, allow_abbrev=False)
    parser.add_argument("--config")
    return parse_with_recipe(parser, ["--train_data", "videos", "--config", str(recipe), *flags])[0]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "toys.yaml"
    path.write_text(
        "mask_ratio: 0.9\npixel_mean: [0.5, 0.4]\ndecoder: trunk\nposition_embedding: rope\nnormalize: true\n"
    )
    return path


SET = Toys("videos", "tube", 0.9, [0.5, 0.4], "trunk", "rope", True)


@pytest.mark.parametrize("name", ["mask_ratio", "pixel_mean", "decoder", "normalize"])
def test_none_takes_back_what_the_recipe_sets(recipe, name):
    assert toys(recipe) == SET
    for flags in ([f"--{name}", "none"], [f"--{name.replace('_', '-')}=none"]):
        assert vars(toys(recipe, *flags)) == vars(SET) | {name: None}


def test_the_last_flag_counts(recipe):
    assert toys(recipe, "--mask_ratio", "none", "--mask_ratio", "0.1").mask_ratio == 0.1
    assert toys(recipe, "--mask_ratio", "0.1", "--mask_ratio", "none").mask_ratio is None


def test_none_may_be_a_value(recipe):
    assert toys(recipe, "--position_embedding", "none").position_embedding == "none"
    assert toys(recipe, "--mask", "none").mask == "none"


def test_other_words_are_refused(recipe):
    with pytest.raises(UsageError, match="invalid float value: 'x'"):
        toys(recipe, "--pixel_mean", "x")
    with pytest.raises(UsageError, match="invalid choice: 'x'"):
        toys(recipe, "--decoder", "x")


def test_a_required_setting_that_is_misspelt_is_named():
    parser = SettingsParser(Toys, allow_abbrev=False)
    for parse in (parse_with_recipe, given_with_recipe):
        with pytest.raises(ValueError, match=r"^--train-dta is not a known setting, .*: did you mean --train_data\?$"):
            parse(parser, ["--train-dta", "videos"])
