"""The page in a browser: the sliders and the charts answer, nothing fails, nothing is asked for."""

import pytest
from chromium import chromium, complaints, requests

from layerlock_hf.reporting import report


@pytest.mark.slow
def test_the_page_in_a_browser(finished, videos, tmp_path):
    page = report(finished, tmp_path / "a page.html", videos)
    with chromium(tmp_path / "profile", "--window-size=1000,800") as driver:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        requests(driver)
        driver.get(page.as_uri())
        shown, stage, depth = (driver.find_element(By.ID, name) for name in ("shown", "stage", "depth"))
        pictures = [shown.get_attribute("src")]
        for slider, told in ((stage, "start of stage 2, step 4"), (depth, "start of stage 2, step 4, after layer 5")):
            slider.send_keys(Keys.ARROW_LEFT)
            pictures.append(shown.get_attribute("src"))
            names = driver.find_element(By.ID, "stage-name").text, driver.find_element(By.ID, "depth-name").text
            assert ", ".join(names).startswith(told)
        assert len(set(pictures)) == 3
        depth.send_keys(Keys.HOME)
        assert driver.find_element(By.ID, "note").text == (
            "Layers 1 to 2 are frozen, so this picture stays as it is from here on."
        )
        chart = driver.find_element(By.CSS_SELECTOR, ".chart")
        chart.find_element(By.TAG_NAME, "svg").send_keys(Keys.ARROW_LEFT)
        assert chart.find_element(By.CSS_SELECTOR, ".reading").text.startswith("step 5: layer 2 ")

        width = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True},
        )
        whole, seen = driver.execute_script(width)
        assert whole <= seen, "on a phone only tables scroll sideways"
        pictures = "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
        assert driver.execute_script(pictures)
        assert complaints(driver) == []
        assert requests(driver) == [page.as_uri()]


@pytest.mark.slow
def test_scripts_that_slip_in_do_not_run(finished, tmp_path):
    page = report(finished, tmp_path / "page.html")
    attack = "<script>document.title = 'attacked'</script><img src=x onerror=\"document.title = 'attacked'\">"
    page.write_text(page.read_text().replace("<main>", f"<main>{attack}"))
    with chromium(tmp_path / "profile") as driver:
        driver.get(page.as_uri())
        assert driver.title == "run – LayerLock run"
        assert len(complaints(driver)) >= 2  # the browser tells that it has refused them
