"""The program that predicts, from a folder of videos to the files that it leaves."""

import filecmp
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import pipeline

from layerlock_hf import (
    LayerLockVideoProcessor,
    LayerLockViTForDepthEstimation,
    LayerLockViTForPretraining,
    LayerLockViTForVideoClassification,
)
from layerlock_hf.cli import predict as program
from layerlock_hf.data import DecodingError, read_clip
from layerlock_hf.data.procedural import FRAME_RATE, write_procedural_dataset
from layerlock_hf.evaluation import depth_videos, predict, predict_depth
from layerlock_hf.utils import files


NUM_FRAMES = 19


@pytest.fixture
def videos(tmp_path):
    """A folder of three videos of 19 frames, of which the second is text."""
    write_procedural_dataset(tmp_path / "data", 3, num_frames=NUM_FRAMES, image_size=48, progress=False)
    folder = tmp_path / "data" / "videos"
    sorted(folder.glob("*.mp4"))[1].write_text("no video")
    return folder


@pytest.fixture
def save(tiny_config, tmp_path):
    def save(model_class):
        folder = tmp_path / model_class.__name__
        tiny_config.num_labels = 7
        model_class(tiny_config).save_pretrained(folder)
        LayerLockVideoProcessor.from_config(tiny_config, size=18).save_pretrained(folder)
        return str(folder)

    return save


def run(model, videos, out, *more):
    arguments = [str(model), str(videos), str(out), "--device", "cpu", "--num_workers", "0", *map(str, more)]
    return program.main(arguments)


def lines(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def read_all(path):
    return read_clip(str(path), lambda available: list(range(available)))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_classes_are_those_of_the_pipeline(save, videos, tmp_path, capsys, batch_size):
    model = save(LayerLockViTForVideoClassification)
    assert run(model, videos, tmp_path / "out", "--batch_size", batch_size, "--top_k", 2) == 0
    rows = lines(tmp_path / "out")
    paths = sorted(map(str, videos.glob("*.mp4")))
    assert [row["path"] for row in rows] == paths
    assert rows[1] == {"path": paths[1], "error": "text, no video", "kind": "text"}
    classify = pipeline("video-classification", model=model, device="cpu")
    for row in (rows[0], rows[2]):
        expected = classify(row["path"], top_k=2)
        assert [label["label"] for label in row["labels"]] == [label["label"] for label in expected]
        assert [label["score"] for label in row["labels"]] == pytest.approx(
            [label["score"] for label in expected], abs=1e-5
        )
    output = capsys.readouterr().out
    assert "2 of 3 videos" in output
    assert f"1 cannot be read: text 1\n  {paths[1]}: text, no video\n" in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.jsonl"]


def test_scores_of_clips_are_averaged(save, videos, tmp_path):
    model = save(LayerLockViTForVideoClassification)
    assert run(model, videos, tmp_path / "out", "--num_clips", 3, "--batch_size", 2, "--top_k", 99) == 0
    row = lines(tmp_path / "out")[0]
    classifier = LayerLockViTForVideoClassification.from_pretrained(model).eval()
    processor = LayerLockVideoProcessor.from_pretrained(model)
    frames = processor(row["path"], do_sample_frames=False).pixel_values_videos[0]
    # Clips of 4 frames with stride 2 span 7 of the 19
    clips = torch.stack([frames[start : start + 7 : 2] for start in (0, 6, 12)])
    with torch.no_grad():
        expected = classifier(clips).logits.softmax(-1).mean(dim=0)
    scores = {label["label"]: label["score"] for label in row["labels"]}
    assert [scores[f"LABEL_{index}"] for index in range(7)] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("has_npz", [True, False])
def test_depth_is_that_of_the_pipeline(save, videos, tmp_path, has_npz):
    model = save(LayerLockViTForDepthEstimation)
    assert run(model, videos, tmp_path / "out", "--batch_size", 3, *["--npz"] * has_npz) == 0
    rows = lines(tmp_path / "out")
    assert rows[1]["kind"] == "text"
    estimate = pipeline("video-depth-estimation", model=model, device="cpu")
    for row in (rows[0], rows[2]):
        found = estimate(row["path"], resize_to_video=False)
        expected = found["predicted_depth"]
        if has_npz:
            arrays = np.load((tmp_path / "out" / row["depth"]).with_suffix(".npz"))
            assert torch.allclose(torch.from_numpy(arrays["depth"]), expected, atol=1e-5)
            assert arrays["box"].tolist() == list(found["box"]) == [2, 2, 43, 43]
            assert arrays["frame_size"].tolist() == [48, 48]
        assert row["num_frames"] == NUM_FRAMES
        metres = {"min": expected.min(), "median": expected.median(), "max": expected.max()}
        assert row["metres"] == pytest.approx({name: value.item() for name, value in metres.items()}, abs=6e-4)
        shown, given = read_all(tmp_path / "out" / row["depth"]), read_all(row["path"])
        assert shown.frames.shape == (NUM_FRAMES, 3, 48, 2 * 48 + 72)
        assert (shown.frames[..., :48].float() - given.frames).abs().mean() < 8
        assert torch.allclose(shown.timestamps, given.timestamps, atol=1e-3)
    assert len(list((tmp_path / "out").iterdir())) == (5 if has_npz else 3)


def test_the_pace_of_depth_is_that_of_the_training(save, videos, tmp_path):
    model = save(LayerLockViTForDepthEstimation)
    LayerLockVideoProcessor.from_pretrained(model, frame_rate=FRAME_RATE / 2).save_pretrained(model)
    assert run(model, videos, tmp_path / "out", "--npz") == 0
    estimate = pipeline("video-depth-estimation", model=model, device="cpu")
    row = lines(tmp_path / "out")[0]
    metres = torch.from_numpy(np.load((tmp_path / "out" / row["depth"]).with_suffix(".npz"))["depth"])
    expected = estimate(row["path"], frame_stride=4, resize_to_video=False)["predicted_depth"]
    assert torch.allclose(metres, expected, atol=1e-5)


def test_colours_tell_metres(save, videos, tmp_path, monkeypatch):
    def forward(self, pixel_values_videos):
        depth = torch.full_like(pixel_values_videos[:, :, 0], 0.1)
        depth[..., 8:] = 9.9
        return SimpleNamespace(predicted_depth=depth)

    model = save(LayerLockViTForDepthEstimation)
    monkeypatch.setattr(LayerLockViTForDepthEstimation, "forward", forward)
    assert run(model, videos, tmp_path / "out") == 0
    clip = read_all(tmp_path / "out" / lines(tmp_path / "out")[0]["depth"])
    frame = clip.frames[0].permute(1, 2, 0).int().numpy()
    near, far, outside = frame[20, 48 + 8], frame[20, 48 + 40], frame[20, 48]
    assert np.abs(outside - depth_videos.UNSEEN).max() < 30  # chroma of two pixels is one
    assert near[0] > near[2] + 50  # red
    assert far[2] > far[0]  # blue
    legend = frame[:, 96 + 12]
    assert np.abs(legend[40] - near).max() < 80
    assert legend[8][2] > legend[8][0] + 50


def test_a_video_that_fails_half_way_leaves_no_file(save, videos, tmp_path, monkeypatch, capsys):
    read = predict_depth.Windows._window

    def window(self, index):
        if index == 1:
            raise DecodingError("it hangs", "timeout")
        return read(self, index)

    monkeypatch.setattr(predict_depth.Windows, "_window", window)
    model = save(LayerLockViTForDepthEstimation)
    assert run(model, videos, tmp_path / "out") == 1
    assert "no video can be read" in capsys.readouterr().out
    errors = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in errors] == ["timeout", "text", "timeout"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["errors.jsonl"]
    monkeypatch.undo()
    assert run(model, videos, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000000.mp4",
        "000002.mp4",
        "predictions.jsonl",
    ]


def test_a_full_disk_is_told_in_a_line(save, videos, tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    said = refused(save(LayerLockViTForVideoClassification), videos, tmp_path / "out")
    assert said == f"error: OUT: cannot write to {tmp_path / 'out'}: No space left on device"
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def refused(*arguments) -> str:
    """The line that a mistake ends with."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_done_is_named(save, videos, tmp_path):
    model, out = save(LayerLockViTForVideoClassification), tmp_path / "out"
    depth, pretraining = save(LayerLockViTForDepthEstimation), save(LayerLockViTForPretraining)
    (tmp_path / "file").touch()
    for arguments, message in [
        ((pretraining, videos, out), "is a LayerLockViTForPretraining: give a readout"),
        ((tmp_path / "none", videos, out), f"MODEL: there is no folder {tmp_path / 'none'}"),
        (("", videos, out), "MODEL: the name must be a folder or an id on the Hub, got nothing"),
        ((model, tmp_path / "none.csv", out), "none.csv"),
        ((model, "", out), "source must be a folder, list or dataset of videos, got an empty name"),
        ((model, videos, tmp_path / "file"), f"OUT: cannot write to {tmp_path / 'file'}: File exists: choose another"),
        ((model, videos, tmp_path / "file" / "below"), "OUT: cannot write to .*: Not a directory: choose another"),
        ((model, videos, videos / "out"), "OUT must lie outside of VIDEOS"),
        (
            (model, videos, out, "--max_depth", 5),
            "--max_depth has no effect on .*, a LayerLockViTForVideoClassification",
        ),
        ((model, videos, out, "--npz"), "--npz has no effect"),
        ((depth, videos, out, "--top_k", 5), "--top_k has no effect on .*, a LayerLockViTForDepthEstimation"),
        ((depth, videos, out, "--num_clips", 1), "--num_clips has no effect"),
    ]:
        assert re.search(message, refused(*arguments))
    assert not (videos / "out").exists() and not any(out.iterdir())
    assert run(model, videos, out) == 0
    assert "OUT must be a folder without predictions, got" in refused(model, videos, out)
    (tmp_path / "films" / "000002.mp4").mkdir(parents=True)
    assert "000002.mp4: Is a directory: choose another" in refused(depth, videos, tmp_path / "films")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], r"--device: must be a device on this machine \(.*\), got 'gpu'"),
        (["--device", "cuda:77"], "must be a device on this machine"),
        (["--device", "meta"], "must be a device on this machine"),
        (["--device", ""], "must be a device on this machine .* got ''"),
        (["--max_depth", "0"], "--max_depth: must be a number of metres above 0, got '0'"),
        (["--max_depth", "nan"], "above 0, got 'nan'"),
        (["--max_depth", "inf"], "above 0, got 'inf'"),
        (["--num_workers", "-1"], "--num_workers: must be a whole number of at least 0, got '-1'"),
        (["--batch_size", "x"], "--batch_size: must be a whole number of at least 1, got 'x'"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        program.main(["model", "videos", str(tmp_path / "out"), *options])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_an_empty_name_is_not_the_current_folder(capsys):
    with pytest.raises(SystemExit, match="2"):
        program.main(["model", "videos", ""])
    assert "argument OUT: must be a path, got ''" in capsys.readouterr().err


def test_readouts_without_weights_are_refused(save, videos, tmp_path):
    model = save(LayerLockViTForPretraining)
    config = json.loads((tmp_path / "LayerLockViTForPretraining" / "config.json").read_text())
    config["architectures"] = ["LayerLockViTForVideoClassification"]
    (tmp_path / "LayerLockViTForPretraining" / "config.json").write_text(json.dumps(config))
    assert "lacks weights, such as classification_readout" in refused(model, videos, tmp_path / "out")


def test_damaged_models_are_named(save, videos, tmp_path):
    model = Path(save(LayerLockViTForVideoClassification))
    weights, config = model / "model.safetensors", json.loads((model / "config.json").read_text())
    whole = weights.read_bytes()
    (model / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a"}, "label2id": {"a": 0}}))
    message = refused(model, videos, tmp_path / "out")
    assert re.search(
        r"has the config.json of another model, by which classification_readout.* must be \(1.*\), got \(7", message
    )
    (model / "config.json").write_text(json.dumps(config))
    for damaged in (whole[: len(whole) // 2], b"random", b"\xff" * 1000):
        weights.write_bytes(damaged)
        assert f"the weights of {model} are damaged" in refused(model, videos, tmp_path / "out")
    weights.unlink()
    assert "model.safetensors" in refused(model, videos, tmp_path / "out")
    weights.write_bytes(whole)
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 33}))
    assert "hidden_size" in refused(model, videos, tmp_path / "out")
    (model / "config.json").write_text("{")
    assert "config" in refused(model, videos, tmp_path / "out")
    (model / "config.json").write_text(json.dumps(config))
    assert run(model, videos, tmp_path / "out") == 0


def test_models_without_our_processor_are_refused(save, videos, tmp_path):
    for model_class in (LayerLockViTForVideoClassification, LayerLockViTForDepthEstimation):
        model = save(model_class)
        (file,) = Path(model).glob("*preprocessor_config.json")
        file.write_text('{"video_processor_type": "VideoMAEVideoProcessor"}')
        assert "processor must be a LayerLockVideoProcessor, got " in refused(model, videos, tmp_path / "out")
        file.unlink()
        assert "save the one used in training beside the model" in refused(model, videos, tmp_path / "out")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/x.mp4", "/b/x.mp4", "/b/y.avi"], ["x-0", "x-1", "y"]),
        (["/a/x.mp4", "/b/x.mp4", "/a/x-0.mp4", "/a/x-1.mp4"], ["x-0-0", "x-1-1", "x-0", "x-1"]),
        (["/a/X.mp4", "/b/x.mp4", "/b/x-1.mp4", "/c/x-1.mp4"], ["X-0", "x-1", "x-1-2", "x-1-3"]),
        (["/a/x.mp4", "/a/x.avi"], ["x-0", "x-1"]),
        (["/a/...mp4", "a\n:b é.mp4", "http://h/a.mp4?b=/c"], ["0", "a__b_é", "c"]),
        (["/a/" + 99 * "é" + "1.mp4", "/a/" + 99 * "é" + "2.mp4"], [60 * "é" + "-0", 60 * "é" + "-1"]),
    ],
)
def test_files_of_one_name_are_told_apart(paths, names):
    rows = [{"video": {"path": path, "bytes": None}} for path in paths]
    assert predict_depth.file_names(rows) == names


def test_boxes_are_scaled_within_the_frame():
    assert depth_videos.scaled_box((0, 40, 240, 240), (240, 320), (480, 640)) == (0, 80, 480, 480)
    assert depth_videos.scaled_box((3, 3, 94, 94), (97, 97), (2, 2)) == (0, 0, 2, 2)
    assert depth_videos.scaled_box((5, 5, 1, 1), (11, 11), (2, 4)) == (1, 2, 1, 1)


def test_workers_change_nothing(save, videos, tmp_path, monkeypatch):
    """Bit by bit, of processes that really are others."""
    (videos / "z.mp4").write_bytes((videos / "000000.mp4").read_bytes())
    readers = tmp_path / "readers"

    def noting(read):
        def noted(self, index):
            with readers.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return read(self, index)

        return noted

    for dataset in (predict.ClassifiedClips, predict_depth.Windows):
        monkeypatch.setattr(dataset, "__getitem__", noting(dataset.__getitem__))
    for model_class, num_files, options in (
        (LayerLockViTForVideoClassification, 1, []),
        (LayerLockViTForDepthEstimation, 7, ["--npz"]),
    ):
        model, outs = save(model_class), [tmp_path / model_class.__name__ / num for num in "02"]
        settings = [*options, "--batch_size", 2]
        assert run(model, videos, outs[0], *settings) == 0
        assert set(readers.read_text().split()) == {str(os.getpid())}
        readers.unlink()
        assert run(model, videos, outs[1], *settings, "--num_workers", 2) == 0
        assert len(set(readers.read_text().split()) - {str(os.getpid())}) >= 2
        readers.unlink()
        names = sorted(path.name for path in outs[0].iterdir())
        assert len(names) == num_files
        # The bytes of the same pictures depend on where x264 has its memory
        films = [name for name in names if name.endswith(".mp4")]
        others = [name for name in names if name not in films]
        assert filecmp.cmpfiles(*outs, others, shallow=False) == (others, [], [])
        for name in films:
            assert torch.equal(*(read_all(out / name).frames for out in outs))
