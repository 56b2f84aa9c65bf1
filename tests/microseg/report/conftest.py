"""Chromium, for the pages of this package."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

PHONE = (390, 844)


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    """Factory of browsers, with a window of a size in CSS pixels; a phone has a touch screen, too.

    Skips the test without Chromium and its driver (`make test-browser` installs them).
    """
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromium-driver")
    with ExitStack() as stack:

        def start(width: int = 1280, height: int = 800) -> Any:
            options = selenium.ChromeOptions()
            options.binary_location = chromium
            for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"):
                options.add_argument(option)
            if (width, height) == PHONE:
                metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
                options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
            options.add_argument(f"--window-size={width},{height}")
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
            stack.callback(found.quit)
            if (width, height) != PHONE:
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            return found

        yield start
