"""The view of a slide as a person uses it, in Chromium, opened from the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from microseg.outputs.record import Record
from microseg.report.slide_view import write_slide_view
from tests.microseg.report.test_decision_page_in_browser import errors
from tests.microseg.report.test_slide_view import mask, record

__all__ = ["mask", "record"]

LOADED = "return [...document.images].length > 0 && [...document.images].every((it) => it.complete && it.naturalWidth)"


def test_moves_and_zooms_and_says_the_scale(browser: Callable[..., Any], record: Record, tmp_path: Path) -> None:
    page = tmp_path / "views" / str(write_slide_view(record, tmp_path / "out", tmp_path / "views"))
    driver = browser(1000, 700)
    driver.get(page.as_uri())
    driver.implicitly_wait(5)
    assert "slide.tif" in driver.find_element("id", "title").text
    # the whole slide of 1300 x 1100 pixels of 0.5 µm in a window of 1000 x 700: 200 pixels of the screen are 157 µm
    assert driver.find_element("id", "length").text == "100 µm"
    for _ in range(3):
        driver.find_element("id", "in").click()
    assert driver.find_element("id", "length").text == "20 µm"
    width = driver.execute_script("return document.getElementById('bar').getBoundingClientRect().width")
    assert abs(width - 20 / 0.5 * (700 / 1100) * 1.5**3) < 1
    driver.find_element("id", "whole").click()
    assert driver.find_element("id", "length").text == "100 µm"
    assert driver.execute_async_script(
        f"const done = arguments[0]; setTimeout(() => done((() => {{ {LOADED} }})()), 500)"
    )
    assert not errors(driver)
