"""`layerlock report`: what it says, and its errors."""

import json

import pytest

from layerlock_hf.cli.report import main


def test_it_says_where_the_page_is(tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps({"max_steps": 3}))
    main([str(tmp_path), "--output", str(tmp_path / "a" / "page.html")])
    assert capsys.readouterr().out == f"{tmp_path}/a/page.html: 0.0 MB. Open it in a browser, or send it\n"


@pytest.mark.parametrize("flags", [[], ["--output", "x.html"]])
def test_a_folder_that_is_no_run_is_told_in_a_line(tmp_path, flags):
    with pytest.raises(SystemExit, match="^error: RUN must be a folder of `layerlock pretrain`, got .*"):
        main([str(tmp_path), *flags])
