import csv
import json
import shutil
import sys

import pytest
import torch
from matplotlib.figure import Figure
from sklearn.neighbors import NearestCentroid
from transformers.utils import logging

from layerlock_hf import LayerLockViTModel
from layerlock_hf.analysis import decodability, representations
from layerlock_hf.analysis.gathering import gather
from layerlock_hf.analysis.measures import MEASURES, choose_measures
from layerlock_hf.analysis.representations import analyze
from layerlock_hf.analysis.study import Settings, depths_of
from layerlock_hf.analysis.subjects import Subject, find_subject, stages_of
from layerlock_hf.cli import analyze as program
from layerlock_hf.evaluation import encode, load_encoder, mean_features
from layerlock_hf.evaluation.any_videos import clips_for, read_any_videos


QUICK = Settings(decode_timeout=0, num_gratings=60, num_clips=2)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    found, save = [], Figure.savefig

    def record(figure, *args, **options):
        save(figure, *args, **options)
        found.append(figure)

    monkeypatch.setattr(Figure, "savefig", record)
    return found


def values_of(rows: list[dict], model: str, measure: str) -> dict[int, float]:
    return {row["depth"]: row["value"] for row in rows if (row["model"], row["measure"]) == (model, measure)}


@pytest.mark.filterwarnings("ignore:.*has no processor file")
def test_all_measures_of_our_model_and_of_another(videos, checkpoints, tmp_path, figures, monkeypatch):
    monkeypatch.setattr(decodability, "_classifier", NearestCentroid)  # fast: what is read is not the question here
    models = {"ours": str(checkpoints / "run"), "videomae": str(checkpoints / "videomae")}
    data = str(videos / "labelled.csv")
    rows = analyze(data, models, None, tmp_path, depths=[2, 0], measures=["all"], settings=QUICK)
    for name in MEASURES:
        expected = {"attention": [2], "cka": [0]}.get(MEASURES[name].family, [0, 2])
        assert [list(values_of(rows, model, name)) for model in models] == [expected] * 2, name
    assert len(rows) == sum(len(values_of(rows, model, name)) for model in models for name in MEASURES)
    with (tmp_path / "representations.csv").open() as file:
        table = list(csv.DictReader(file))
    assert table[0].keys() == {"model", "depth", "measure", "value"} and len(table) == len(rows)
    content = json.loads((tmp_path / "representations.json").read_text())
    assert [row["value"] for row in content["rows"]] == [
        None if one["value"] == "" else float(one["value"]) for one in table
    ]
    assert content["models"]["videomae"]["num_hidden_layers"] == 2 and content["data"]["num_clips"] == 24
    assert content["chance"]["action_accuracy"] == pytest.approx(1 / 3)
    pairs = [(table["measure"], *table["models"]) for table in content["similarities"]]
    assert len(pairs) == 6 and ("cka_rbf", "ours", "videomae") in pairs
    depths, *maps = figures
    panels = [axes for axes in depths.axes if axes.lines]
    assert len(panels) == len(MEASURES) and all(axes.get_xlabel() == "layers passed" for axes in panels)
    assert [axes.get_ylabel() for axes in panels] == [measure.axis for measure in MEASURES.values()]
    assert [text.get_text() for text in depths.legends[0].texts] == ["ours", "videomae", "chance"]
    assert [sum(bool(axes.images) for axes in figure.axes) for figure in maps] == [3, 3]
    for name in ("depths", "cka_linear", "cka_rbf"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_stages_of_a_run(videos, checkpoints, tmp_path):
    """stage-10 comes after stage-2, and a stage that is what the run ended with is alike in all things."""
    run = tmp_path / "run"
    shutil.copytree(checkpoints / "run", run)
    shutil.copy(run / "model.safetensors", run / "stages/stage-10/model.safetensors")
    rows = analyze(str(videos / "plain.csv"), run=run, output_dir=tmp_path / "out", depths=[0, 6], settings=QUICK)
    assert list(dict.fromkeys(row["model"] for row in rows)) == ["stage-2", "stage-10", "end"]
    assert values_of(rows, "stage-10", "token_norm") == values_of(rows, "end", "token_norm")
    assert values_of(rows, "stage-2", "token_norm") != values_of(rows, "end", "token_norm")
    tables = json.loads((tmp_path / "out/representations.json").read_text())["similarities"]
    values = {tuple(table["models"]): table["values"] for table in tables if table["measure"] == "cka_linear"}
    assert [values["stage-10", "end"][place][place] for place in (0, 1)] == pytest.approx([1, 1], abs=1e-4)
    assert values["stage-2", "end"][1][1] < 0.999
    assert "retrieval" not in {MEASURES[row["measure"]].family for row in rows}  # there are no labels


def test_what_is_gathered_is_what_all_clips_at_once_give(videos, checkpoints):
    encoder = load_encoder(checkpoints / "run")
    clips = clips_for(encoder, read_any_videos(str(videos / "labelled.csv")), num_clips=2, decode_timeout=0)
    found = gather(encoder, clips, [0, 3], batch_size=5, occludes=True)
    shown = torch.cat([clips[index]["pixel_values_videos"] for index in range(12)])
    for means, expected in zip(found.means, encode(encoder, shown, [0, 3], pool=mean_features), strict=True):
        torch.testing.assert_close(means, expected)
    assert found.videos.tolist() == [index for index in range(12) for _ in range(2)]
    assert [found.labels[place].item() for place in (0, 2, 4)] == [0, 1, 2]
    whole = gather(encoder, clips, [0, 3], batch_size=12, occludes=True)
    torch.testing.assert_close(found.patches, whole.patches)
    assert (found.patches[1] - found.means[1]).abs().mean() > 0.01


def test_bad_videos_are_left_out_and_told(videos, checkpoints, tmp_path):
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    (folder / "videos/000003.mp4").write_bytes(b"no video")
    data, models = str(folder / "labelled.csv"), {"a": str(checkpoints / "run")}
    analyze(data, models, None, tmp_path / "out", [1], ["rankme"], settings=QUICK)
    told = json.loads((tmp_path / "out/representations.json").read_text())["data"]
    assert told["num_clips"] == 22
    assert [name.endswith("000003.mp4") for name in told["failed"]] == [True]
    for path in (folder / "videos").iterdir():
        path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="^data: none of 12 videos can be read, the first because of: "):
        analyze(data, models, depths=[1], measures=["rankme"], settings=QUICK)


def test_a_collapsed_encoder_and_one_that_diverged(videos, checkpoints, tmp_path):
    """The first has the same tokens everywhere, which is measured; the second none that are numbers, which is told."""
    model = LayerLockViTModel.from_pretrained(checkpoints / "run")
    for value, name in ((0.0, "collapsed"), (torch.nan, "diverged")):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, value)
        model.save_pretrained(tmp_path / name)
    data, models = str(videos / "labelled.csv"), {"a": str(tmp_path / "collapsed")}
    rows = analyze(data, models, None, tmp_path / "out", depths=[0, 2], settings=QUICK)
    assert values_of(rows, "a", "feature_std") == {0: 0, 2: 0}
    assert values_of(rows, "a", "effective_rank") == pytest.approx({0: 1, 2: 1})
    tables = json.loads((tmp_path / "out/representations.json").read_text())["similarities"]
    assert tables[0]["values"] == [[None, None], [None, None]]
    with pytest.raises(ValueError, match="^features of b after 0 layers must be finite, got NaN or inf: it has"):
        analyze(data, {"b": str(tmp_path / "diverged")}, settings=QUICK)


def test_nothing_to_plot(videos, checkpoints, tmp_path):
    data, models = str(videos / "plain.csv"), {"a": str(checkpoints / "run")}
    assert analyze(data, models, None, tmp_path, depths=[0], measures=["attention"], settings=QUICK) == []
    assert (tmp_path / "representations.csv").read_text().strip() == "model,depth,measure,value"


def test_probes_of_classes_fitted_elsewhere(videos, checkpoints, monkeypatch):
    """Classes are matched by name: the list to test on has two of the three, which would be numbered otherwise."""
    part = videos / "part.csv"
    part.write_text("path,label\nvideos/000001.mp4,right\nvideos/000002.mp4,up\nvideos/000004.mp4,right\n")
    rest = videos / "rest.csv"
    rest.write_text("path,label\nvideos/000000.mp4,left\nvideos/000005.mp4,up\nvideos/000007.mp4,right\n")
    seen = []
    monkeypatch.setattr("layerlock_hf.analysis.study.probe_accuracy", lambda *args: seen.append(args) or 0.5)
    models, settings = {"a": str(checkpoints / "run")}, QUICK
    rows = analyze(str(part), models, depths=[6], measures=["actions"], train_data=str(rest), settings=settings)
    assert values_of(rows, "a", "action_accuracy") == {6: 0.5}
    (_, labels, _, test_labels), *_ = seen
    assert labels.tolist()[::2] == [0, 2, 1] and test_labels.tolist()[::2] == [1, 2, 1]


def test_the_same_every_time_and_untrained_weights(videos, checkpoints):
    models = {"a": str(checkpoints / "run"), "untrained": f"{checkpoints / 'run'}@random"}
    once, again = (
        analyze(str(videos / "plain.csv"), models, depths=[2], measures=["tokens"], settings=QUICK) for _ in range(2)
    )
    assert once == again
    assert values_of(once, "a", "token_norm") != values_of(once, "untrained", "token_norm")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": {}}, "models must name at least one encoder"),
        ({"models": {"a": "RUN@stage-3"}}, r"stage-3 must be one of the stages .* \(stage-2, stage-10\), got"),
        ({"models": {"a": "RUN@best"}}, "models must be NAME=PATH, PATH@stage-K or PATH@random, got .*: what is best"),
        ({"models": {"end": "RUN"}, "run": "RUN"}, "models must have distinct names, got end twice: choose another"),
        ({"models": {}, "run": "RUN/stages"}, "run must be a folder of a run that has kept its stages, got"),
        (
            {"models": {"a": "RUN", "b": "VIDEOMAE"}, "depths": [3]},
            "between 0 and 2, the layers of b, got 3: leave",
        ),
        ({"measures": ["rank_me"]}, "got rank_me: did you mean rankme"),
        ({"measures": ["xyz"]}, "got xyz: these are feature_std, "),
        (
            {"measures": ["retrieval"], "data": "plain.csv"},
            "data must have labels, got none: .*, or leave hit_rate_1 out",
        ),
        ({"train_data": "plain.csv"}, "train_data must be labelled, as data must be, got no labels"),
        ({"max_videos": 1}, "data must have at least 4 clips that can be read, got 2: give more"),
        ({"max_videos": 3, "measures": ["actions"]}, "data must have at least 3 videos of every class"),
        (
            {"train_data": "labelled.csv"},
            "train_data must share no videos with data, got 12, such as .*: leave",
        ),
    ],
)
def test_mistakes(settings, message, videos, checkpoints):
    def path(name):
        name = str(name).replace("RUN", str(checkpoints / "run")).replace("VIDEOMAE", str(checkpoints / "videomae"))
        return str(videos / name) if name.endswith(".csv") else name

    given = {"models": {"a": "RUN"}, "data": "labelled.csv", "settings": QUICK} | settings
    given["models"] = {name: path(place) for name, place in given["models"].items()}
    given |= {name: path(given[name]) for name in ("data", "run", "train_data") if name in given}
    with pytest.raises(ValueError, match=message):
        analyze(**given)


def test_mistakes_are_told_before_anything_is_measured(videos, checkpoints, monkeypatch):
    monkeypatch.setattr(representations.Study, "add", lambda *_: pytest.fail("too late"))
    models = {"a": str(checkpoints / "run"), "b": "no/such/folder"}
    with pytest.raises(ValueError, match="cannot load no/such/folder"):
        analyze(str(videos / "plain.csv"), models, measures=["tokens"])


def test_which_measures(caplog):
    logging.enable_propagation()
    assert choose_measures(["tokens"], {}) == [name for name, one in MEASURES.items() if one.family == "tokens"]
    assert choose_measures(["rankme", "feature_std"], {}) == ["feature_std", "rankme"]
    usual = choose_measures(None, {})
    assert "action_accuracy" in usual and "action_occ_drop" not in usual and "drifting_accuracy" not in usual
    assert choose_measures(["all"], {}) == list(MEASURES)
    assert not caplog.messages
    families = {MEASURES[name].family for name in choose_measures(["all"], {"actions": "no labels"})}
    assert families == {"tokens", "cka", "retrieval", "drifting", "double_drifting", "attention"}
    assert caplog.messages == ["measures of actions are left out: no labels"]
    with pytest.raises(ValueError, match="^no labels, or leave action_accuracy out$"):
        choose_measures(["actions"], {"actions": "no labels"})


def test_without_scikit_learn_what_does_not_need_it_is_measured(videos, checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    models = {"a": str(checkpoints / "run")}
    rows = analyze(str(videos / "labelled.csv"), models, depths=[1], settings=QUICK)
    assert {MEASURES[row["measure"]].family for row in rows} == {"tokens", "retrieval"}  # CKA has no next depth here
    with pytest.raises(ValueError, match=r'scikit-learn must be .*\[analysis\]", or leave drifting_accuracy'):
        analyze(str(videos / "labelled.csv"), models, measures=["drifting"])


def test_few_gratings_are_refused():
    with pytest.raises(ValueError, match="num_gratings must be at least 60, got 59: take more"):
        Settings(num_gratings=59)


def test_where_encoders_are_read():
    class Encoder:
        def __init__(self, num_layers):
            self.config = type("Config", (), {"num_hidden_layers": num_layers})

    subject = Subject("a", "b")
    assert depths_of(subject, Encoder(4), None) == [0, 1, 2, 3, 4]
    assert depths_of(subject, Encoder(48), None) == list(range(0, 49, 4))
    assert depths_of(subject, Encoder(4), [4, 0, 4]) == [0, 4]


def test_what_names_stand_for(checkpoints, tmp_path):
    run = str(checkpoints / "run")
    assert find_subject("a", run) == Subject("a", run)
    assert find_subject("a", f"{run}@stage-2") == Subject("a", f"{run}/stages/stage-2")
    assert find_subject("a", f"{run}@random") == Subject("a", run, has_random_weights=True)
    (tmp_path / "me@home").mkdir()
    assert find_subject("a", str(tmp_path / "me@home")).path == str(tmp_path / "me@home")
    assert [subject.name for subject in stages_of(run)] == ["stage-2", "stage-10", "end"]


def test_the_command(videos, checkpoints, tmp_path, capsys):
    command = ["representations", "--models", f"a={checkpoints / 'run'}", "--data", str(videos / "plain.csv")]
    command += ["--output_dir", str(tmp_path), "--decode_timeout", "0"]
    program.main([*command, "--depths", "1", "3", "--measures", "rankme", "--max_videos", "5"])
    assert "2 values in" in capsys.readouterr().out
    assert (tmp_path / "depths.png").is_file() and not (tmp_path / "cka_linear.png").exists()
    with pytest.raises(SystemExit, match="^error: models must be NAME=PATH, got 'b': for instance mae=runs/mae$"):
        program.main([*command, "--models", "b"])
    with pytest.raises(SystemExit, match="^error: there is no analysis representation: did you mean representations"):
        program.main(["representation"])
    program.main(["--help"])
    assert "usage: layerlock analyze {" in capsys.readouterr().out
