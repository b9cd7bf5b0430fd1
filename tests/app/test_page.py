"""What happens on the page, without a server, with one, and in a browser."""

import concurrent.futures
import contextlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from chromium import chromium, complaints, requests

from layerlock_hf.app.page import PICTURES, START, Looking, load_gradio


MAX_MB, MAX_SECONDS = 1, 30
# What the client of Gradio says whenever it closes a stream of its own
NO_FAULT = "Method not implemented."


@pytest.fixture
def looking(subject) -> Looking:
    return Looking(subject, MAX_MB, MAX_SECONDS)


@pytest.fixture
def served(finished, readouts, tmp_path):
    """The address of the page of a run, served by `layerlock app`."""
    pytest.importorskip("gradio", reason='the page is served by it: pip install "layerlock_hf[app]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "layerlock_hf", "app", finished, "--port", port, "--max_mb", MAX_MB]
    command += [word for name, folder in readouts.items() for word in (f"--{name}", folder)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_video_is_looked_at(looking, video):
    line, visit = looking.read(video)
    assert line.startswith("4 frames of 000000.mp4, from ")
    pictures = dict(zip(PICTURES, looking.pictures(visit, 1, 3), strict=True))
    assert len({picture.shape for picture in pictures.values()}) == 1
    deeper = dict(zip(PICTURES, looking.pictures(visit, 1, 6), strict=True))
    same = {name for name in PICTURES if (pictures[name] == deeper[name]).all()}
    assert same == {"clip", "seen", "predicted"}
    assert set(looking.classes(visit)) == {"left", "right"}
    assert looking.film(visit).startswith("<video ")


def test_a_click_changes_what_is_compared_with(looking, video):
    _, visit = looking.read(video)
    clicked = looking.clicked(visit, 1, 2, 2)
    assert (visit.token, clicked.token) == (None, 0)
    assert looking.clicked(None, 1, 2, 2) is None
    before, after = (looking.pictures(one, 1, 6) for one in (visit, clicked))
    differ = [name for name, one, other in zip(PICTURES, before, after, strict=True) if (one != other).any()]
    assert differ == ["alike"]


def test_what_cannot_be_read_is_told_and_nothing_is_shown(looking, broken):
    line, visit = looking.read(broken)
    assert line == "**broken.mp4 cannot be shown:** text, no video"
    assert visit is None and looking.classes(visit) is None and looking.film(visit) == ""
    assert looking.pictures(visit, 0, 1) == [None] * len(PICTURES)
    assert looking.read(None) == (START, None)


def test_why_there_is_no_reconstruction(looking):
    assert looking.why_no_reconstruction(1) == ""
    assert looking.why_no_reconstruction(3).endswith(" model 1 (stage 1: step 2, layer 1 frozen).")


def test_without_gradio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'^gradio must be installed .*: pip install "layerlock_hf\[app\]"$'):
        load_gradio()


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(finished):
    pytest.importorskip("gradio", reason='the page is served by it: pip install "layerlock_hf[app]"')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "layerlock_hf", "app", str(finished), "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stderr.splitlines()[-1] == (
        f"error: host must be an address of this machine whose port {port} is free, got 127.0.0.1: choose another "
        "--host or --port"
    )


@pytest.mark.slow
def test_visitors_do_not_see_each_other(served, video, counting, broken):
    from gradio_client import Client, handle_file

    def visit(path: str) -> str:
        line, *_ = Client(served, verbose=False).predict(handle_file(path), 3, 6, api_name="/read")
        return line

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        lines = list(pool.map(visit, [video, counting, broken] * 2))
    assert lines[:3] == lines[3:]
    told = [line.split(",")[0] for line in lines[:3]]
    assert told == ["4 frames of 000000.mp4", "4 frames of counting.gif", "**broken.mp4 cannot be shown:** text"]


@pytest.mark.slow
def test_the_page_in_a_browser(served, video, broken, tmp_path):
    with chromium(tmp_path / "profile", "--window-size=1200,1400") as driver:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import WebDriverWait

        def find(selector: str):
            return driver.find_element(By.CSS_SELECTOR, selector)

        def source(name: str) -> str:
            return find(f"#{name} img").get_attribute("src")

        waiting = WebDriverWait(driver, 60, ignored_exceptions=[Exception])
        requests(driver)
        driver.get(served)
        waiting.until(lambda _: find("#file input[type=file]")).send_keys(video)
        waiting.until(lambda _: source("features"))
        assert find("#told").text.startswith("4 frames of 000000.mp4")
        assert not driver.find_elements(By.CSS_SELECTOR, "#predicted img"), "the last stage predicts latents"

        before = source("alike")
        find("#clip img").click()
        waiting.until(lambda _: source("alike") != before)

        slider = find("#model input[type=range]")
        for _ in range(2):
            slider.send_keys(Keys.ARROW_LEFT)
        waiting.until(lambda _: source("predicted"))
        before = source("features")
        find("#depth input[type=range]").send_keys(Keys.HOME)
        waiting.until(lambda _: source("features") != before)

        phone = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        width = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        whole, seen = driver.execute_script(width)
        assert whole <= seen, "on a phone nothing scrolls sideways"
        find("#file button[aria-label='Clear']").click()
        waiting.until(lambda _: find("#told").text == START)
        find("#file input[type=file]").send_keys(broken)
        waiting.until(lambda _: find("#told").text == "broken.mp4 cannot be shown: text, no video")
        assert not driver.find_elements(By.CSS_SELECTOR, "#clip img")
        assert [line for line in complaints(driver) if NO_FAULT not in line] == []
        asked = [url for url in requests(driver) if not url.startswith((served, f"blob:{served}"))]
        assert asked == [], "nothing is asked of anybody else"
