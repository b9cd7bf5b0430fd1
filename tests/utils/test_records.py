import json
import math

import pytest

from layerlock_hf.utils.records import json_text, read_record, write_record


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_what_is_not_finite_becomes_null():
    content = {"a": [1.5, math.nan, (math.inf, "NaN")], "b": {"c": -math.inf, "d": None, "e": True}}
    read = json.loads(json_text(content), parse_constant=refuse)
    assert read == {"a": [1.5, None, [None, "NaN"]], "b": {"c": None, "d": None, "e": True}}


def test_the_form_of_the_text():
    assert json_text({"ä": 1}) == '{"\\u00e4": 1}'
    assert json_text({"ä": 1}, indent=1, ensure_ascii=False) == '{\n "ä": 1\n}'


def test_a_record_is_read_by_the_call_that_it_is_of(tmp_path):
    path = tmp_path / "record.json"
    assert read_record(path, {"seed": 0}) is None
    write_record(path, {"settings": {"seed": 0}, "loss": math.nan})
    assert read_record(path, {"seed": 0}) == {"settings": {"seed": 0}, "loss": None}
    with pytest.raises(ValueError, match=r"record.json is of other settings: delete its folder, or choose another"):
        read_record(path, {"seed": 1})
