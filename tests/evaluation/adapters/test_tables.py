import json
from pathlib import Path

import datasets
import pytest

from layerlock_hf.evaluation.adapters import read_labelled


ROWS = [
    {"set": "a", "class": "run", "path": "1.mp4", "group": "p1", "split": "train"},
    {"set": "a", "class": "walk", "path": "2.mp4", "group": "p1", "split": "train"},
    {"set": "a", "class": "walk", "path": "3.mp4", "group": "p2", "split": "val"},
    {"set": "b", "class": "sit", "path": "4.mp4", "group": "p3", "split": "train"},
    {"set": "b", "class": "sit", "path": "5.mp4", "group": "p4", "split": "val"},
]


def csv_of(rows):
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])


def names(found):
    return [Path(video["path"]).name for video in found.videos["video"]]


@pytest.fixture
def root(write):
    for row in ROWS:
        root = write(row["path"])
    return root


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_splits_classes_and_groups(root, write, suffix):
    if suffix == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(root / "splits.parquet")
    else:
        text = {"csv": csv_of(ROWS), "jsonl": "\n".join(map(json.dumps, ROWS)), "json": json.dumps(ROWS)}
        write(f"splits.{suffix}", text[suffix])
    train, test = (read_labelled("table", str(root / f"splits.{suffix}"), split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["run", "sit", "walk"]
    assert (names(train), train.labels, train.groups) == (["1.mp4", "2.mp4", "4.mp4"], [0, 2, 1], ["p1", "p1", "p3"])
    assert (names(test), test.labels, test.groups) == (["3.mp4", "5.mp4"], [2, 1], ["p2", "p4"])
    # A folder with one list will do, and columns choose among its rows
    train = read_labelled("table", f"{root}?set=a", "train")
    assert (names(train), train.class_names) == (["1.mp4", "2.mp4"], ["run", "walk"])


def test_rows_for_testing_come_before_those_for_validation(root, write):
    write("l.csv", csv_of([*ROWS, {"set": "a", "class": "run", "path": "6.mp4", "group": "p5", "split": "test"}]))
    write("6.mp4")
    assert names(read_labelled("table", str(root / "l.csv"), "test")) == ["6.mp4"]
    assert names(read_labelled("table", f"{root}/l.csv?part=val", "test")) == ["3.mp4", "5.mp4"]
    assert len(read_labelled("table", f"{root}/l.csv?part=all", "test").videos) == 6


@pytest.mark.parametrize("files", [("train.csv", "test.csv"), ("train.csv", "val.csv"), ("train/a.csv", "test/b.csv")])
def test_a_list_for_each_split(write, files):
    rows = [{"path": f"{label}.mp4", "label": label} for label in (10, 9)]
    write(files[0], csv_of(rows))
    root = write(files[1], csv_of(rows[:1]))
    for file in files:
        write(str(Path(file).with_name("10.mp4")))
    train, test = (read_labelled("table", str(root), split) for split in ("train", "test"))
    # Numbers are counted as such, and 9.mp4 is absent, and stays
    assert (train.class_names, train.labels, train.groups) == (["9", "10"], [1, 0], None)
    assert (test.class_names, test.labels) == (["9", "10"], [1])


@pytest.mark.parametrize(
    "rows, query, message",
    [
        ([{"path": "1.mp4", "name": "x", "split": "train"}], "", "l.csv' has no column label or class"),
        ([{"path": "1.mp4", "class": "", "split": "train"}], "", "row 1: no class"),
        (ROWS, "?color=red", "no column 'color', only set, class, path"),
        (ROWS, "?set=c", "has no row where set is 'c', only a, b"),
        (ROWS, "?part=test", "has no row where split is 'test', only train, val"),
        (ROWS[2:3], "", r"no rows to train on, only val: choose by '.*l.csv\?part=NAME'"),
        ([*ROWS, {**ROWS[0], "split": "later"}], "", "row 6: the split 'later' is not a known one"),
        ([*ROWS, {**ROWS[0], "split": ""}], "", "row 6: the split ''"),
        ([{**ROWS[0], "path": "0.mp4"}], "", "none of the videos .* exists, such as .*0.mp4"),
        ([{**ROWS[0], "group": ""}], "", "row 1: no group"),
    ],
)
def test_damaged_lists(root, write, rows, query, message):
    write("l.csv", csv_of(rows))
    with pytest.raises(ValueError, match=message):
        read_labelled("table", f"{root}/l.csv{query}", "train")


def test_splits_may_be_written_in_capitals(root, write):
    write("l.csv", csv_of([{**row, "split": row["split"].upper()} for row in ROWS[:2]] + ROWS[2:]))
    assert names(read_labelled("table", str(root / "l.csv"), "train")) == ["1.mp4", "2.mp4", "4.mp4"]


def test_a_label_that_no_training_row_has(root, write):
    write("l.csv", csv_of([*ROWS, {**ROWS[2], "class": "fly"}]))
    with pytest.raises(ValueError, match="l.csv', row 6: the label 'fly' is none of the classes of the training rows"):
        read_labelled("table", str(root / "l.csv"), "test")


def test_missing_lists(root):
    with pytest.raises(ValueError, match="holds no list"):
        read_labelled("table", str(root), "train")
    with pytest.raises(ValueError, match="1.mp4' is not a list: give a file"):
        read_labelled("table", str(root / "1.mp4"), "train")


def test_several_lists_of_unclear_use(root, write):
    write("a.csv", csv_of(ROWS))
    write("b.csv", csv_of(ROWS))
    with pytest.raises(ValueError, match="holds a.csv, b.csv"):
        read_labelled("table", str(root), "train")


def test_folders_of_classes(write):
    for name in ("train/run/1.mp4", "train/walk/far/2.mp4", "train/walk/notes.txt", "val/walk/3.avi"):
        root = write(name)
    train, test = (read_labelled("folder", str(root), split) for split in ("train", "test"))
    assert (names(train), train.labels) == (["1.mp4", "2.mp4"], [0, 1])
    assert (names(test), test.labels, test.class_names) == (["3.avi"], [1], ["run", "walk"])
    assert read_labelled("folder", f"{root}/train?part=all", "test").labels == [0, 1]
    with pytest.raises(ValueError, match="has no folders train and test.*part=all"):
        read_labelled("folder", str(root / "train"), "train")
    assert read_labelled("folder", str(root / "train"), "test", may_lack_split=True).labels == [0, 1]
    write("val/fly/4.mp4")
    with pytest.raises(ValueError, match="4.mp4', its folder: the label 'fly'"):
        read_labelled("folder", str(root), "test")
    write("train/5.mp4")
    with pytest.raises(ValueError, match="5.mp4' lies in no class folder"):
        read_labelled("folder", str(root), "train")


def test_a_folder_of_one_split_alone(write):
    root = write("test/walk/1.mp4")
    assert read_labelled("folder", str(root), "test").class_names == ["walk"]
    with pytest.raises(ValueError, match="has no folder train or training"):
        read_labelled("folder", str(root), "train", may_lack_split=True)  # "test" is no class


def test_real_actions():
    path = Path(__file__).parents[3].parent / "shared/data/actions/splits.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    for query, classes, sizes in (("ut_interaction", 6, (71, 25)), ("skateboardml", 2, (114, 38))):
        found = [read_labelled("table", f"{path}?dataset={query}", split) for split in ("train", "test")]
        assert tuple(len(one.videos) for one in found) == sizes
        assert [len(one.class_names) for one in found] == [classes, classes]
        assert all(Path(video["path"]).is_file() for one in found for video in one.videos["video"])


def test_a_column_that_the_first_rows_lack(root, write):
    rows = [{"path": "1.mp4", "class": "run", "split": "train"}, ROWS[1]]
    write("l.json", json.dumps(rows))
    with pytest.raises(ValueError, match="l.json', row 1: no group"):  # not left out without a word
        read_labelled("table", str(root / "l.json"), "train")
    write("l.jsonl", "\n".join(json.dumps(row) for row in [{"set": "b", **rows[0]}, {**ROWS[1], "kind": "far"}]))
    assert names(read_labelled("table", f"{root}/l.jsonl?kind=far", "train")) == ["2.mp4"]


def test_videos_to_train_and_to_test_are_counted(root, write, caplog):
    rows = [*ROWS, {**ROWS[0], "path": "./x/../1.mp4", "split": "val"}]
    write("l.csv", csv_of(rows))
    with caplog.at_level("WARNING"):
        assert len(read_labelled("table", str(root / "l.csv"), "train").videos) == 3
        assert not caplog.text
        assert len(read_labelled("table", str(root / "l.csv"), "test").videos) == 3
    assert "1 of 3 test videos are also training videos, such as" in caplog.text and "1.mp4" in caplog.text
    assert "1 groups have both training and test videos, such as 'p1'" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):  # the same rows for either split, as one asks for them
        read_labelled("table", f"{root}/l.csv?part=all", "test")
        write("l.csv", csv_of(ROWS))
        read_labelled("table", str(root / "l.csv"), "test")
    assert not caplog.text


def test_embedded_videos_of_one_file_are_several(root, caplog):
    rows = [{"video": b"v", "label": "run", "split": split} for split in ("train", "test")]
    datasets.Dataset.from_list(rows).to_parquet(root / "l.parquet")
    with caplog.at_level("WARNING"):
        assert len(read_labelled("table", str(root / "l.parquet"), "test").videos) == 1
    assert not caplog.text


def test_columns_of_other_names_are_named_after_the_list(root, write):
    rows = [{"clip": row["path"], "kind": row["class"], "split": row["split"]} for row in ROWS]
    path = write("l.csv", csv_of(rows)) / "l.csv"
    with pytest.raises(ValueError, match=r"name the column of the videos with '.*l.csv\?video_column=NAME'"):
        read_labelled("table", str(path), "train")
    with pytest.raises(ValueError, match=r"name the column of the classes with '.*l.csv\?label_column=NAME'"):
        read_labelled("table", f"{path}?video_column=clip", "train")
    train = read_labelled("table", f"{path}?video_column=clip&label_column=kind", "train")
    assert (names(train), train.class_names) == (["1.mp4", "2.mp4", "4.mp4"], ["run", "sit", "walk"])


def test_lists_without_a_header(root, write):
    write("train.csv", "1.mp4 0\n2.mp4 7\n")
    write("val.csv", "3.mp4 7\n")
    train, test = (read_labelled("table", str(root), split) for split in ("train", "test"))
    assert (names(train), train.class_names, train.labels) == (["1.mp4", "2.mp4"], ["0", "7"], [0, 1])
    assert (names(test), test.labels) == (["3.mp4"], [1])


def test_classes_that_differ_in_case_alone_are_refused(root, write):
    rows = [dict(row) for row in ROWS]
    rows[0]["class"] = "Walk"
    path = write("l.csv", csv_of(rows)) / "l.csv"
    with pytest.raises(ValueError, match="labels must differ in more than case, .* got 'Walk' and 'walk': spell them"):
        read_labelled("table", str(path), "train")
    rows[0]["class"] = " walk "  # blanks around it are nothing
    write("l.csv", csv_of(rows))
    assert read_labelled("table", str(path), "train").class_names == ["sit", "walk"]
