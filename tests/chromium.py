"""Headless Chromium for tests of pages: what it shows, what it complains about, what it asks for."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


PROGRAM, DRIVER = "chromium", "chromedriver"  # of Debian's packages chromium and chromium-driver
# It starts as root, in a container, and talks to nobody
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


@contextlib.contextmanager
def chromium(profile: Path, *flags: str) -> Iterator:
    """A driver of Selenium; the test is skipped where there is no Chromium.

    Args:
        profile: an empty folder for what it stores.
        flags: further ones, such as --window-size=400,800.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="pages are tested with it: pip install selenium")
    if not (shutil.which(PROGRAM) and shutil.which(DRIVER)):
        pytest.skip(f"no {PROGRAM} with {DRIVER}: on Debian, apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(PROGRAM)
    for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Its path is given, so that Selenium looks for no other on the network
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def complaints(driver) -> list[str]:
    """Errors and warnings of the page since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver) -> list[str]:
    """Addresses that pages have asked for since the last call; not what they hold, nor the pages of the browser."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith(("data:", "chrome:"))]
