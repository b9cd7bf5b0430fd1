"""The site of the documentation: that it is complete, that what is generated is what the code says, and that it works
without a network.
"""

import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from chromium import chromium, complaints, requests
from pages import ROOT, load_script

import layerlock_hf
import layerlock_hf.training
from layerlock_hf.models.configuration_layerlock import architecture_fields


def mentioned(nav) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in mentioned(part)]


def test_every_page_is_in_the_navigation():
    nav = mentioned(yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"])
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(nav), "add a line to nav in mkdocs.yml"
    assert all((ROOT / page).is_file() for page in set(nav) - pages - {"index.md"})
    assert len(nav) == len(set(nav))


@pytest.mark.parametrize("module", [layerlock_hf, layerlock_hf.training], ids=lambda module: module.__name__)
def test_the_reference_has_what_is_public(module):
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    told = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    modules = re.findall(r"^::: (layerlock_hf[\w.]+\.[a-z_]+)$", text, re.MULTILINE)
    of_modules = {name for name in module.__all__ if getattr(getattr(module, name), "__module__", "") in modules}
    settings = {"METHODS", "StageArguments"}  # told in docs/extending.md and docs/settings.md
    public = {name: getattr(getattr(module, name), "__name__", name) for name in module.__all__}
    assert not {name for name, real in public.items() if real not in told | of_modules | settings}


@functools.cache
def hardware():
    return load_script("hardware")


def assert_is_counted(recipe: str):
    text = hardware().PAGE.read_text(encoding="utf-8")
    for name, rows in hardware().tables_of([hardware().plans_of(recipe)]).items():
        committed = [row for row in hardware().counted(name, text)[1] if row.startswith(f"| `{recipe}` |")]
        assert committed == rows, "python scripts/site/hardware.py writes the tables anew"


def test_a_recipe_of_the_hardware_page_is_what_is_counted():
    assert_is_counted("fig1")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*load_script("hardware").SMALL, *load_script("hardware").RECIPES])
def test_the_hardware_page_is_what_is_counted(recipe):
    assert_is_counted(recipe)


def texts(picture: Path) -> list[str]:
    """What a picture says; its coordinates move with the version of matplotlib."""
    return re.findall(r">([^<>]+)</(?:text|tspan)>", picture.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", load_script("pictures").PICTURES)
def test_pictures_of_methods_are_those_of_the_recipes(name, tmp_path):
    load_script("pictures").draw(name, tmp_path)
    committed = ROOT / "docs" / "assets" / f"method_{name}.svg"
    assert texts(committed) == texts(tmp_path / committed.name) != []


@contextlib.contextmanager
def served(folder: Path):
    """The address of a server of this folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, as `make docs` builds it, with warnings as errors."""
    pytest.importorskip("mkdocs", reason='the site is built by MkDocs: pip install "layerlock_hf[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_the_site_needs_no_other(site):
    """Nothing is loaded from elsewhere: only links lead there."""
    loads = re.compile(r"""<(?:script|img|iframe|source)[^>]+src="(https?:[^"]+)|<link[^>]+href="(https?:[^"]+)""")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [(page.name, found) for page in pages for found in loads.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.slow
def test_the_reference_has_the_fields_of_configurations(site):
    page = re.sub(r"<[^>]+>", "", (site / "api" / "models.html").read_text(encoding="utf-8"))
    signature = page.partition("LayerLockViTConfig(")[2].partition("Shape of a LayerLock video ViT.")[0]
    fields = set(re.findall(r"^ +(\w+)=", signature, re.MULTILINE))
    assert architecture_fields().keys() - fields == set()
    assert "auto_classes" not in fields and "model_type" not in fields


@pytest.mark.slow
@pytest.mark.parametrize("is_served", [True, False], ids=["served", "as files"])
def test_pages_in_a_browser(site, tmp_path, is_served):
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(served(site)) if is_served else site.as_uri()
        driver = stack.enter_context(chromium(tmp_path / "profile", "--window-size=1200,900"))
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        requests(driver)
        wait = WebDriverWait(driver, 30)
        driver.get(f"{address}/index.html")
        assert driver.find_element(By.TAG_NAME, "h1").text.startswith("layerlock_hf")
        pictures = "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
        assert driver.execute_script(pictures)
        assert driver.execute_script(
            "return [...document.images].every((image) => image.parentElement.href === image.src)"
        )
        driver.get(f"{address}/api/training.html#layerlock_hf.training.stages.FreezeSchedule")
        assert "num_freezes" in driver.find_element(By.TAG_NAME, "article").text
        field = driver.find_element(By.CSS_SELECTOR, "input.md-search__input")
        driver.execute_script("arguments[0].focus()", field)
        field.send_keys("effective rank")
        found = wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link"))
        assert any("analysis" in link.get_attribute("href") for link in found)

        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        for page in ("index", "hardware", "methods", "troubleshooting"):
            driver.get(f"{address}/{page}.html")
            whole, seen = driver.execute_script("return [document.body.scrollWidth, window.innerWidth]")
            assert whole <= seen, f"on a phone only tables scroll sideways: {page}"
        assert complaints(driver) == []
        assert not [url for url in requests(driver) if not url.startswith(address)]
