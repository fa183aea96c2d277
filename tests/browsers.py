"""Headless Chromium, and axe-core from npm, for the tests of pages.

A test takes them as fixtures: `from browsers import axe, browser`.
"""

import os
import shutil
import subprocess
import tarfile
import time

import pytest

WIDE, NARROW = 1280, 390
CHROMIUM = (
    shutil.which("google-chrome") or shutil.which("chromium") or shutil.which("chromium-browser")
)  # GitHub has both, and the first one's driver
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser():
    "Headless Chromium that writes down its console and its requests"
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if not CHROMIUM or not driver:
        pytest.skip(
            os.environ.get("NO_BROWSER", "no Chromium: apt-get install chromium chromium-driver")
        )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_script_timeout(180)  # axe over a long page, on a busy machine
    yield chrome
    chrome.quit()


def set_screen(browser, width=WIDE, theme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=width, height=800, deviceScaleFactor=1, mobile=False),
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        dict(features=[dict(name="prefers-color-scheme", value=theme)]),
    )


def until(browser, script, seconds=15):
    end = time.time() + seconds
    while not (value := browser.execute_script(script)) and time.time() < end:
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    "axe-core, from npm"
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if (
        not npm
        or subprocess.run(
            [npm, "pack", "axe-core@4.14.1", "--silent"],
            cwd=folder,
            capture_output=True,
            timeout=60,
        ).returncode
    ):
        pytest.skip("axe-core cannot be had from npm")
    with tarfile.open(next(folder.glob("*.tgz"))) as packed:
        return packed.extractfile("package/axe.min.js").read().decode()


def serious_faults(browser, axe):
    "What axe finds on the page that is open, but for what it calls minor or moderate"
    browser.execute_script(
        "document.head.insertAdjacentHTML('beforeend', '<style>* {transition: none "
        "!important}</style>')"
    )  # colours as they stay
    browser.execute_script(axe)
    found = browser.execute_async_script(
        "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r "
        "=> done(r.violations.map(v => [v.impact, v.id, v.nodes.length, "
        "v.nodes[0].html.slice(0, 160)])))"
    )
    return [fault for fault in found if fault[0] in ("serious", "critical")]
