"""Search: that a clip finds itself, that nothing is left out unsaid, and the pictures of what was found."""

import json
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import layerlock_hf
from layerlock_hf.embedding import nearest as comparing
from layerlock_hf.embedding import sheet
from layerlock_hf.embedding.nearest import find_nearest, nearest_by_numpy, unit_means
from layerlock_hf.embedding.search import Found, Hit


SETTINGS = {"window": "8f", "depths": [3, 6], "windows_per_shard": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def out(videos, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    layerlock_hf.embed(str(videos), folder, model, **SETTINGS)
    return folder


def test_a_clip_finds_itself(out, videos):
    for depth in (None, 3):
        found = layerlock_hf.search(out, str(videos / "v4.mp4"), top=3, query_window=1.0, depth=depth)
        best = found.hits[0]
        assert (best.video, best.first_frame, best.num_frames) == (str(videos / "v4.mp4"), 8, 8)
        assert best.score == pytest.approx(1, abs=1e-5)
        assert best.start_seconds == found.query[0].start_seconds == pytest.approx(8 / 14)
        assert found.depth == (depth or 6) and found.note is None
        scores = [hit.score for hit in found.hits]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3


def test_every_window_is_compared_with_every_window_of_the_clip(out, videos):
    everything = layerlock_hf.search(out, str(videos / "v4.mp4"), top=1000)
    num_windows = json.loads((out / "manifest.json").read_text())["counts"]["windows"]
    assert everything.num_searched == len(everything.hits) == num_windows
    parts = [
        layerlock_hf.search(out, str(videos / "v4.mp4"), top=1000, query_window=hit.start_seconds + 0.01)
        for hit in everything.query[:-1]  # the last one overlaps the one before
    ]
    assert [part.query[0].window for part in parts] == [hit.window for hit in everything.query[:-1]]
    for hit in everything.hits:
        scores = [other.score for part in parts for other in part.hits if (other.video, other.window) == key(hit)]
        assert hit.score >= max(scores) - 1e-5


def key(hit):
    return hit.video, hit.window


@pytest.mark.parametrize("pool", ["frame", "grid"])
def test_steps_and_grids_are_averaged(pool, out, videos, model, tmp_path):
    layerlock_hf.embed(str(videos), tmp_path / pool, model, pool=pool, **SETTINGS)
    at = 7.5 / 12  # in the last frame of the window, which the encoder is not shown
    plain = layerlock_hf.search(out, str(videos / "v2.mp4"), top=5, query_window=at)
    averaged = layerlock_hf.search(tmp_path / pool, str(videos / "v2.mp4"), top=5, query_window=at)
    assert key(plain.hits[0]) == key(averaged.hits[0]) == (str(videos / "v2.mp4"), 0)
    assert [hit.score for hit in plain.hits] == pytest.approx([hit.score for hit in averaged.hits], abs=1e-5)


def test_what_is_missing_is_told_of(out, videos, tmp_path):
    out = shutil.copytree(out, tmp_path / "out")
    (out / "manifest.json").unlink()
    record = next((out / "ranks").glob("*.json"))
    record.write_text(record.read_text().replace('"is_complete": true', '"is_complete": false'))
    next((out / "data").iterdir()).unlink()
    found = layerlock_hf.search(out, str(videos / "v2.mp4"))
    assert "1 of 6 shards are missing" in found.note and "not all videos are embedded yet (9 are)" in found.note
    assert found.hits


def test_whether_all_frames_decode(out, videos, model, tmp_path):
    query = str(videos / "v2.mp4")
    layerlock_hf.embed(query, tmp_path, model, **SETTINGS)
    assert layerlock_hf.search(tmp_path, query).is_whole
    assert not layerlock_hf.search(out, query).is_whole, "of cut.mp4 they do not"


def test_refusals(out, videos, save_model, tmp_path):
    query = str(videos / "v2.mp4")
    for told, settings in {
        "depth must be one of those in .*, 3, 6, got 5": {"depth": 5},
        "top must be at least 1, got 0": {"top": 0},
        "query_window must be a time of .*v2.mp4, in seconds, got 99: no window shows it": {"query_window": 99},
        "there is no folder /nowhere": {"model": "/nowhere"},
    }.items():
        with pytest.raises(ValueError, match=told):
            layerlock_hf.search(out, query, **settings)
    with pytest.raises(ValueError, match="query .*text.mp4 cannot be read: text, no video"):
        layerlock_hf.search(out, str(videos / "text.mp4"))
    with pytest.raises(ValueError, match="holds no vectors: give the OUT of `layerlock embed`"):
        layerlock_hf.search(tmp_path, query)
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match=f"got {other}, whose weights or configuration differ: give a copy of the one"
    ):
        layerlock_hf.search(out, query, model=other)
    layerlock_hf.embed(query, tmp_path / "changed", other)
    save_model(tmp_path / "other", seed=2)
    with pytest.raises(ValueError, match=f"the weights or the configuration of {other} have changed: give a copy"):
        layerlock_hf.search(tmp_path / "changed", query)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 8 pictures, of which the first does not decode and the others tell their numbers; the last has
    another size."""
    folder = tmp_path / "pictures" / "clip"
    folder.mkdir(parents=True)
    for index in range(8):
        size = (40, 16) if index == 7 else (20, 16)
        Image.new("RGB", size, (30 * index,) * 3).save(folder / f"{index}.png")
    (folder / "0.png").write_bytes(b"broken")
    return str(folder)


def test_pictures_without_times_have_no_window_that_shows_one(out, pictures):
    with pytest.raises(ValueError, match="query_window must be left out for .*clip, got 0: pictures have no times"):
        layerlock_hf.search(out, pictures, query_window=0)


def test_one_per_video(out, videos):
    """Of every video the window that all of them together have first."""
    query = str(videos / "v4.mp4")
    everything = layerlock_hf.search(out, query, top=1000)
    firsts = {}
    for hit in everything.hits:
        firsts.setdefault(hit.video, hit)
    assert len(firsts) == 8 < len(everything.hits)
    found = layerlock_hf.search(out, query, top=1000, one_per_video=True)
    assert found.hits == list(firsts.values()) and found.num_searched == everything.num_searched
    assert found.hits[0].video == query
    assert layerlock_hf.search(out, query, top=3, one_per_video=True).hits == list(firsts.values())[:3]


@pytest.fixture(params=["numpy", "faiss"])
def nearest(request, monkeypatch):
    """What compares vectors where faiss is missing, and where it is installed."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)
    find_nearest.cache_clear()
    yield find_nearest()
    find_nearest.cache_clear()


def test_without_faiss_numpy_compares(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(comparing.logger, "warning", None)
    find_nearest.cache_clear()
    assert find_nearest() is nearest_by_numpy
    find_nearest.cache_clear()


@pytest.mark.parametrize("text", ["raise RuntimeError('no AVX2\\nhere')", "", "import no_such_module"])
def test_a_broken_faiss_is_told_of(text, tmp_path, monkeypatch):
    """One that cannot be loaded, another that lacks what compares, and one that lacks what it needs."""
    (tmp_path / "faiss.py").write_text(text)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    warned = []
    monkeypatch.setattr(comparing.logger, "warning", warned.append)
    find_nearest.cache_clear()
    assert find_nearest() is nearest_by_numpy
    find_nearest.cache_clear()
    sys.modules.pop("faiss", None)
    (told,) = warned
    assert told.startswith("NumPy compares the vectors, as faiss cannot be loaded: ") and "\n" not in told


def test_nearest_by_hand(nearest):
    vectors = unit_means(np.float32([[1, 1], [3, 0], [0, 0], [0, 2]]), (1, 2))
    scores, found = nearest(np.float32([[1, 0], [0, 1]]), vectors, 3)
    assert found.tolist() == [1, 3, 0] and scores.tolist() == [1.0, 1.0, pytest.approx(0.5**0.5)]


def test_of_equals_the_first_are_found(nearest):
    vectors = unit_means(np.ones((50, 8), np.float32), (1, 8))
    vectors[20] = -vectors[20]
    assert nearest(vectors[:1], vectors, 4)[1].tolist() == [0, 1, 2, 3]
    scores, found = nearest(vectors[:1], vectors, 50)
    assert found.tolist() == [*range(20), *range(21, 50), 20] and scores[-1] == pytest.approx(-1)


def test_the_nearest_are_those_of_a_sort(nearest):
    draw = np.random.default_rng(0)
    queries, vectors = (unit_means(draw.normal(size=(n, 16)).astype(np.float32), (1, 16)) for n in (30, 300))
    best = np.sort((vectors @ queries.T).max(axis=1))[::-1]
    for count in (1, 7, 300):
        scores, found = nearest(queries, vectors, count)
        assert len(set(found.tolist())) == count
        np.testing.assert_allclose(scores, best[:count], atol=1e-5)


def test_a_search_does_not_depend_on_what_compares(nearest, out, videos):
    found = layerlock_hf.search(out, str(videos / "v2.mp4"), top=1000)
    num_windows = json.loads((out / "manifest.json").read_text())["counts"]["windows"]
    assert len(found.hits) == num_windows and found.hits[0].score == pytest.approx(1, abs=1e-5)
    assert found.hits[0].video == str(videos / "v2.mp4")


class Page(HTMLParser):
    """What a page shows, and what it asks others for."""

    def __init__(self, text):
        super().__init__()
        self.text, self.sources = "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_sheets(write_video, tmp_path):
    strange = write_video(tmp_path / "<b>&amp;'\".mp4", 20)
    query = Hit(1.0, str(strange), 0, 0.0, 0.8, 0, 8)
    hits = [query, Hit(0.5, "gone.mp4", 3, 3661.5, 3663.0, 90, 30)]
    (tmp_path / "sheets").mkdir()
    png, page = sheet.write_sheets(Found([query], hits, 27, 6, "1 of 7 shards are missing", True), tmp_path / "sheets")
    shown = Page(page.read_text(encoding="utf-8"))
    assert shown.text.count(str(strange)) == 4 and "1:01:01.50 to 1:01:03.00" in shown.text
    assert "1 of 7 shards are missing" in shown.text
    assert len(shown.sources) == 3 and all(source.startswith("data:image/jpeg;base64,") for source in shown.sources)
    pixels = np.asarray(Image.open(png).convert("L"), int)
    assert pixels.shape[0] > 3 * sheet.TILE[1]
    top = sheet.MARGIN + sheet.LINE + sheet.TILE[1] // 2
    middles = [sheet.MARGIN + sheet.TILE[0] // 2 + n * (sheet.TILE[0] + sheet.MARGIN) for n in range(4)]
    # Frames 1, 3, 5 and 7
    assert [pixels[top, x] for x in middles] == pytest.approx([13, 29, 45, 61], abs=6)


def test_sheets_show_the_pictures_that_decode(pictures):
    """Numbers of frames count these alone, and they may differ in size."""
    strip = sheet.strip_of(Hit(1.0, pictures, 0, float("nan"), float("nan"), 3, 4), False)
    pixels = np.asarray(strip.convert("L"), int)
    middles = [sheet.TILE[0] // 2 + n * (sheet.TILE[0] + sheet.MARGIN) for n in range(4)]
    assert [pixels[sheet.TILE[1] // 2, x] for x in middles] == [120, 150, 180, 210]
    later = Hit(1.0, pictures, 0, 0.4, 0.8, 4, 4)
    assert sheet.strip_of(later, True) == strip, "where all are known to decode, those before are not looked at"
    assert sheet.strip_of(later, False) != strip


def test_a_full_disk_is_told_of_with_the_folder(tmp_path, monkeypatch):
    hit = Hit(1.0, "gone.mp4", 0, 0.0, 0.8, 0, 8)

    def fill(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    monkeypatch.setattr(sheet, "page_of", lambda *arguments: "")
    with pytest.raises(ValueError, match=f"output_dir: cannot write to {tmp_path}: No space left on device: free"):
        sheet.write_sheets(Found([hit], [hit], 1, 6, None, True), tmp_path)
    assert not list(tmp_path.iterdir())


def test_times():
    assert [sheet.clock(seconds) for seconds in (0.5, 59.999, 61, 3599.999)] == [
        "0:00.50",
        "1:00.00",
        "1:01.00",
        "1:00:00.00",
    ]
    assert sheet.time_of(Hit(1.0, "a", 0, float("nan"), float("nan"), 8, 4)) == "frames 8 to 11"
