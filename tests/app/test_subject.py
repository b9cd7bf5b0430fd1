"""What a folder lets people try."""

import pytest

from layerlock_hf import export
from layerlock_hf.app import Subject, find_kept
from layerlock_hf.app.subject import open_readout


def test_the_models_that_a_run_has_kept(finished):
    kept = find_kept(finished)
    assert [one.name for one in kept] == [
        "stage 0: step 0, nothing frozen",
        "stage 1: step 2, layer 1 frozen",
        "stage 2: step 4, layers 1 to 2 frozen",
        "step 6 of 6",
    ]
    # The one at the start of stage 1 has learned in stage 0, which alone predicts pixels
    assert [one.objective is not None for one in kept] == [False, True, False, False]


def test_a_repository_is_on_record_as_its_run_was(finished, tmp_path):
    folder = export(finished, tmp_path / "repository", checkpoint="stage-1")
    (kept,) = find_kept(folder)
    assert kept.name == "stage 1: step 2, layer 1 frozen"
    assert kept.objective == find_kept(finished)[1].objective and kept.masks is not None


def test_one_model_is_held(subject):
    first = subject.model(0)
    assert subject.model(0) is first
    assert subject.model(1) is not first
    assert subject.model(0) is not first


def test_a_readout_is_tried_by_itself(readouts):
    subject = Subject(find_kept(readouts["classes"]))
    assert list(subject.readouts) == ["classification"] and subject.num_layers == 6
    assert subject.kept[0].masks is None and subject.kept[0].objective is None


def test_a_readout_of_the_wrong_kind_is_told(readouts):
    with pytest.raises(ValueError, match="^READOUT must be one for depth, got .*, which is for classification: train"):
        open_readout(readouts["classes"], "depth")


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ValueError, match="^run must hold a model of its own or a complete checkpoint"):
        find_kept(tmp_path)
