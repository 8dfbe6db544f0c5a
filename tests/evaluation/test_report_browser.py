"""The report in a browser: it draws, answers the pointer, asks for nothing, and fits into its window."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from retriever.evaluation.report import ReportSettings, write_report
from retriever.evaluation.report.text import shown
from tests.evaluation.reporting import HOSTILE, ROWS, hostile_rows
from tests.support import build

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="chromium and chromedriver are not installed")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
PLACE = """
const box = document.getElementById("map"), trace = box.data[arguments[0]], at = box.getBoundingClientRect();
const {xaxis, yaxis, _size} = box._fullLayout;
return [at.left + _size.l + xaxis.d2p(trace.x[arguments[1]]), at.top + _size.t + yaxis.d2p(trace.y[arguments[1]])];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, rows in (("plain", ROWS), ("hostile", hostile_rows())):
        retriever = build(rows, folder / f"{name}.index", weight=0.5)
        write_report(retriever, folder / f"{name}.html", settings=ReportSettings(leave_one_out=20, k=3))
    return folder


def opened(browser, page, width, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    until(browser, "return document.documentElement.dataset.ready === 'yes'")


def until(browser, script):
    for _ in range(200):
        if browser.execute_script(script):
            return
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}; the console says {browser.get_log('browser')}")


def hovered(browser, trace, point):
    """The text that appears when the pointer comes to a point of the map."""
    browser.execute_script("document.getElementById('map').scrollIntoView({block: 'center'})")
    x, y = browser.execute_script(PLACE, trace, point)
    for dx in (-3, 0):
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + dx, "y": y})
        time.sleep(0.1)
    until(browser, "return !document.getElementById('tip').hidden")
    return browser.execute_script("return document.getElementById('tip').innerText")


def requests(browser):
    """The addresses that were asked for."""
    told = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    return [one["params"]["request"]["url"] for one in told if one["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("name", ["plain", "hostile"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_it_fits_the_window_without_an_error_or_a_request(browser, pages, name, width, scheme):
    page = pages / f"{name}.html"
    opened(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    widths = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1] == width
    drawn = "return [...document.querySelectorAll('.plot')].every((one) => one.querySelector('svg.main-svg'))"
    assert browser.execute_script(drawn)
    hovered(browser, 3, 0)
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]


def test_a_query_tells_what_was_chosen_for_it_and_lines_lead_there(browser, pages):
    opened(browser, pages / "plain.html", 1280)
    query = browser.execute_script("return document.getElementById('map').data[3].customdata[0]")
    text = hovered(browser, 3, 0)
    assert (
        query["input"] in text
        and f"query {query['id']}, chosen for it:" in text
        and "\n3. " in text.replace("\n\n", "\n")
    )
    until(browser, "return document.getElementById('map').data[1].x.length === 9")  # three lines of two ends and a gap


def test_hostile_texts_appear_as_text(browser, pages):
    opened(browser, pages / "hostile.html", 1280)
    seen = browser.execute_script("return document.body.innerText")
    assert all(" ".join(shown(one, 300).split()) in " ".join(seen.split()) for one in HOSTILE)
    ticks = browser.execute_script(
        "return document.getElementById('labels').querySelector('.yaxislayer-above').textContent"
    )
    assert "--accent" in ticks and "</script><script>" in ticks and "<img src=x onerror=" in ticks
    points = browser.execute_script("return document.getElementById('map').data[3].customdata.map((one) => one.input)")
    assert points[0] in hovered(browser, 3, 0)
    assert browser.execute_script("return document.querySelectorAll('script, img, b').length") == 3


def test_a_script_that_slipped_through_would_not_run(browser, pages, tmp_path):
    text = (pages / "plain.html").read_text(encoding="utf-8")
    page = tmp_path / "slipped.html"
    page.write_text(text.replace("<main>", "<main><script>document.title = 'ran'</script>", 1), encoding="utf-8")
    opened(browser, page, 1280)
    assert browser.title == "Report on plain.index"
    browser.get_log("browser")
