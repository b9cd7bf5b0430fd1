import pytest

from layerlock_hf.data.procedural import write_procedural_dataset
from layerlock_hf.evaluation import load_encoder
from layerlock_hf.evaluation.any_videos import check_disjoint, clips_for, read_any_videos
from layerlock_hf.models import LayerLockViTModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    for split, num_videos in (("train", 5), ("test", 4)):
        write_procedural_dataset(folder / split, num_videos, num_frames=6, image_size=16, progress=False)
    (folder / "plain.csv").write_text("path\n" + "".join(f"test/videos/{number:06d}.mp4\n" for number in range(4)))
    (folder / "words.csv").write_text("path,label\ntest/videos/000000.mp4,up\ntest/videos/000001.mp4,down\n")
    return folder


def test_with_labels_and_without(folder):
    plain, words = (read_any_videos(str(folder / name)) for name in ("plain.csv", "words.csv"))
    assert (plain.class_names, plain.labels) == ([], [0] * 4)
    assert (words.class_names, words.labels) == (["down", "up"], [1, 0])


def test_splits_of_a_dataset_and_one_that_has_none(folder):
    test, train = (read_any_videos(str(folder), "procedural", split) for split in ("test", "train"))
    assert (len(test.labels), len(train.labels), len(test.class_names)) == (4, 5, 8)
    assert len(read_any_videos(str(folder / "test"), "procedural").labels) == 4


def test_some_of_many(folder):
    every, some = (read_any_videos(str(folder), "procedural", "train", number) for number in (None, 3))
    paths = [row["video"]["path"] for row in every.videos]
    places = [paths.index(row["video"]["path"]) for row in some.videos]
    assert len(places) == 3 and places == sorted(places)
    assert some.labels == [every.labels[place] for place in places]
    again = read_any_videos(str(folder), "procedural", "train", 3)
    assert [row["video"]["path"] for row in again.videos] == [paths[place] for place in places]


def test_shared_videos(folder):
    test, train, words = (
        *(read_any_videos(str(folder), "procedural", split) for split in ("test", "train")),
        read_any_videos(str(folder / "words.csv")),
    )
    check_disjoint(train, test)
    with pytest.raises(ValueError, match="train_data must share no videos with data, got 2, such as .*000000.mp4"):
        check_disjoint(test, words)


def test_clips_are_of_the_size_of_the_encoder(folder, tiny_config, tmp_path):
    LayerLockViTModel(tiny_config).save_pretrained(tmp_path)
    clips = clips_for(
        load_encoder(tmp_path),
        read_any_videos(str(folder / "plain.csv")),
        num_clips=2,
        frame_stride=1,
        decode_timeout=0,
    )
    assert clips[1]["pixel_values_videos"].shape == (2, 4, 3, 16, 16)
