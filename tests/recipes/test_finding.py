"""Recipes by name and by path."""

from pathlib import Path

import pytest

from layerlock_hf.recipes import find_recipe, list_recipes, load_recipe, recipe_paths


def test_recipes_of_the_package_are_found_by_name():
    assert load_recipe("table7-jump-3")["layers_per_freeze"] == 3
    assert find_recipe("demo") == recipe_paths()["demo"]
    names = [path.stem for path in Path(recipe_paths()["demo"]).parent.rglob("*.yaml")]
    assert len(set(names)) == len(names), "a name would stand for two files"


def test_a_file_of_the_user_goes_before_a_name(tmp_path, monkeypatch):
    (tmp_path / "demo").write_text("max_steps: 3\n")
    assert load_recipe(tmp_path / "demo") == {"max_steps": 3}
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo") == {"max_steps": 3}
    (tmp_path / "demo").unlink()
    (tmp_path / "demo").mkdir()  # such as the folder of a run
    assert load_recipe("demo")["max_steps"] == 1200


def test_a_path_that_is_not_there_is_not_taken_for_a_name(tmp_path):
    with pytest.raises(ValueError, match="config: there is no recipe .*mine/demo.yaml: did you mean demo"):
        find_recipe(tmp_path / "mine" / "demo.yaml")


def test_summaries():
    summaries = {one.name: one for one in list_recipes()}
    assert list(summaries)[0] == "4ds-e-layerlock" and set(summaries) == set(recipe_paths())
    assert summaries["sec31-mae-rope-attention"].text.startswith("Sec. 3.1: 4DS-G with RoPE on the queries and keys")
    assert (summaries["ssv2"].kind, summaries["ssv2"].model, summaries["ssv2"].num_steps) == ("readouts", "", 40_000)
    assert all(one.text and one.num_steps for one in summaries.values())


def test_load_recipe_refuses(tmp_path):
    with pytest.raises(ValueError, match="no recipe"):
        load_recipe(tmp_path / "none.yaml")
    broken = {"broken": "a: [1", "list": "- a\n- b", "empty": "", "numbers": "1: 2", "twice": "a: 1\na: 2"}
    for name, text in broken.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"^config: .*{name}.*$"):  # in one line
            load_recipe(tmp_path / name)
