import pytest

from layerlock_hf.evaluation.adapters.roots import parse_range, parse_root


def test_options_follow_the_path(tmp_path):
    assert parse_root(f"{tmp_path}/a.csv") == (tmp_path / "a.csv", {})
    assert parse_root(f"{tmp_path}/a.csv?x=1&y=b:0-3,c") == (tmp_path / "a.csv", {"x": "1", "y": "b:0-3,c"})


def test_what_exists_is_no_option(tmp_path):
    (tmp_path / "a?b=c").mkdir()
    assert parse_root(f"{tmp_path}/a?b=c") == (tmp_path / "a?b=c", {})


@pytest.mark.parametrize("query", ["x", "x=", "=1", "x=1&x=2", ""])
def test_other_queries_are_refused(query):
    with pytest.raises(ValueError, match="must be option=value"):
        parse_root(f"a.csv?{query}")


def test_ranges_include_both_ends():
    assert parse_range("3-5") == range(3, 6)
    for text in ("5-3", "3", "3-", "a-b", "-3-5"):
        with pytest.raises(ValueError, match="FIRST-LAST"):
            parse_range(text)
