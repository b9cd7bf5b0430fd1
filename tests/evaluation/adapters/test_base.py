import pytest

from layerlock_hf.data import DecodingError, fetch, is_any_there, load_videos, read_clip
from layerlock_hf.evaluation.adapters.base import Origin, list_videos, path_in, read_csv


ORIGIN = Origin("Things", "https://things", "free", "a.txt\nb.txt")


def test_videos_are_as_load_videos_gives_them(write):
    root = write("list.csv", "path\na.mp4\nb.mp4\n")
    ours = list_videos([str(root / "a.mp4"), str(root / "b.mp4")], [0, 1], ["x", "y"]).videos
    theirs = load_videos(str(root / "list.csv"))
    assert ours.features == theirs.features
    assert ours.to_list() == theirs.to_list()


def test_an_absent_video_stays_and_is_reported_by_decoding(tmp_path):
    videos = list_videos([str(tmp_path / "a.mp4")], [0], ["x"]).videos
    with pytest.raises(DecodingError) as caught:
        read_clip(fetch(videos[0]), lambda num_frames: [0])
    assert caught.value.kind == "missing"


def test_relabelling_follows_names():
    videos = list_videos(["a", "b", "c"], [1, 0, 1], ["run", "walk"], ["g", "g", "h"])
    other = videos.relabelled(["walk", "sit", "run"])
    assert (other.labels, other.class_names, other.groups) == ([0, 2, 0], ["walk", "sit", "run"], ["g", "g", "h"])
    with pytest.raises(ValueError, match="such as 'walk', are not among the 1 of the training data"):
        videos.relabelled(["run"])


def test_one_file_must_match(write):
    root = write("x_train.csv")
    assert ORIGIN.find(root, "train.csv", "*_train.csv") == root / "x_train.csv"
    write("y_train.csv")
    with pytest.raises(ValueError, match="x_train.csv and y_train.csv"):
        ORIGIN.find(root, "train.csv", "*_train.csv")
    with pytest.raises(
        ValueError, match=r"(?s)lacks c.txt. Things is expected as\n    a.txt.*https://things \(free\)"
    ):
        ORIGIN.find(root, "c.txt", "c*[_-]d.txt")  # no patterns, which nobody can read


def test_a_part_of_a_large_dataset_is_enough(write):
    root = write("777.mp4")
    paths = [str(root / f"{index}.mp4") for index in range(1000)]
    assert is_any_there(paths)  # one of them all, wherever it stands
    assert not is_any_there(paths[:777]) and not is_any_there([]) and not is_any_there([str(root / "no/777.mp4")])


@pytest.mark.parametrize("name", ["../a.mp4", "x/../../a.mp4", "/etc/passwd", "a\0b"])
def test_lists_of_owners_do_not_lead_out_of_their_folder(write, name):
    root = write("set/b.mp4")
    write("a.mp4")
    with pytest.raises(ValueError, match="in the list leads out of '.*set'"):
        ORIGIN.place(root / "set", ["{}"], ["b.mp4", name])
    assert path_in(root, "set/b..mp4") == str(root / "set/b..mp4")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no column 'a'"),
        ("a,c\n1,2\n", "no column 'b'"),
        ("a,b\n", "lists nothing"),
        ("a,b\n1,2\n3,\n", "line 3: no b"),
        ("a,b\n1,2\n3\n", "line 3: no b"),
        (b"a,b\n\xff,2\n", "is not text"),
    ],
)
def test_damaged_lists_are_named(write, text, message):
    path = write("list.csv", text) / "list.csv"
    with pytest.raises(ValueError, match=f"list.csv.*{message}"):
        read_csv(path, ["a", "b"])
