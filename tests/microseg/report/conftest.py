"""Chromium, for the pages of this package."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PHONE = (390, 844)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests: starting it takes seconds."""
    selenium = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def browser(chromium: Any) -> Callable[..., Any]:
    """Gives the browser, on an empty page, a window of a size in CSS pixels; a phone has a touch screen, too.

    Skips the test without Chromium and its driver (`make test-browser` installs them).
    """

    def resize(width: int = 1280, height: int = 800) -> Any:
        phone = (width, height) == PHONE
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        touch = {"enabled": phone, "maxTouchPoints": 1}
        chromium.get("about:blank")
        chromium.implicitly_wait(0)
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", touch)
        chromium.get_log("browser")  # of the tests before
        return chromium

    return resize
