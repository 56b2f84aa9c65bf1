"""The decision page as a person uses it, in Chromium."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microseg.config.params import GateSettings
from microseg.evaluation.comparison import Comparison
from microseg.registry.evidence import Evidence
from microseg.registry.gate import decide
from microseg.report.decision_page import Purpose, write_decision_page
from microseg.report.pictures import Picture, draw_pictures
from tests.microseg.report.conftest import PHONE
from tests.microseg.report.test_decision_page import HOSTILE, PRODUCTION, evidence
from tests.microseg.report.test_pictures import Threshold, targets

GREEN, BLUE = (10, 255, 145), (60, 140, 185)  # outlines of the first class; what only the candidate marks, on gray


def write(folder: Path, count: int, production: Evidence | None = PRODUCTION) -> Path:
    """A page whose candidate marks a square of 40 pixels, and production nothing."""
    image = np.full((100, 120, 3), 60, np.uint8)
    image[30:70, 40:80] = 200
    names = [HOSTILE.replace("/", "|") if n == 0 else f"image {n}" for n in range(count)]
    given = targets(folder, dict.fromkeys(names, image))
    old: Any = Threshold(255) if production else None
    pictures: list[Picture] = draw_pictures(Threshold(128), old, given)  # type: ignore[arg-type]
    new = evidence(0.78, 0.54, 0.92, 0.26)
    comparison = Comparison(
        new, production, "lab <b>", {}, {it.name: it.uncertainty for it in pictures} | {"other": 0.1}
    )
    decision = replace(decide(new, production, GateSettings()), version=2, production_version=1 if production else None)
    path = folder / "decision.html"
    write_decision_page(decision, comparison, Purpose(("background", "cell")), pictures, path)
    return path


def opened(browser: Any, path: Path) -> Any:
    browser.get(path.as_uri())
    ready = "return [...document.querySelectorAll('figure.picture:not([hidden])')].every((it) => it.dataset.ready)"
    end = time.monotonic() + 120
    while not browser.execute_script(ready):
        assert time.monotonic() < end, "the pictures are not drawn"
        time.sleep(0.1)
    return browser


def colors(browser: Any, figure: int, kind: str) -> dict[tuple[int, ...], int]:
    """How many screen pixels of a panel have each color."""
    script = """
        const figure = document.querySelectorAll("figure.picture")[arguments[0]], found = {};
        const canvas = figure.querySelector(`[data-kind=${arguments[1]}]`);
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        for (let i = 0; i < data.length; i += 4) {
          const key = data.slice(i, i + 3).join();
          found[key] = (found[key] || 0) + 1;
        }
        return found;
    """
    return {tuple(map(int, key.split(","))): it for key, it in browser.execute_script(script, figure, kind).items()}


def near(found: dict[tuple[int, ...], int], color: tuple[int, int, int], most: int) -> int:
    return sum(it for key, it in found.items() if max(abs(a - b) for a, b in zip(key, color, strict=True)) <= most)


def errors(browser: Any) -> list[str]:
    return [it["message"] for it in browser.get_log("browser") if it["level"] == "SEVERE"]


@pytest.mark.parametrize("size", [(1280, 800), PHONE])
def test_panels_show_both_masks_and_their_difference(browser: Callable[..., Any], tmp_path: Path, size: Any) -> None:
    page = opened(browser(*size), write(tmp_path, 2))
    assert near(colors(page, 0, "candidate"), GREEN, 2) > 200
    assert near(colors(page, 0, "production"), GREEN, 2) == 0
    marked, shown = near(colors(page, 0, "difference"), BLUE, 40), sum(colors(page, 0, "difference").values())
    # the square is 40 × 40 of 120 × 100 pixels
    assert marked / shown == pytest.approx(1600 / 12000, rel=0.1)
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0]  # nothing sticks out
    top = page.find_element("css selector", ".verdict").rect
    assert top["y"] + top["height"] < size[1]  # on the first screen
    labs = [it.rect for it in page.find_elements("css selector", ".effects .kind")]
    assert any(it["y"] < size[1] for it in labs)
    assert errors(page) == []


def test_numbers_and_charts_can_be_read_on_a_phone(browser: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(browser(*PHONE), write(tmp_path, 1))
    boxes = "return [...document.querySelectorAll('#numbers .scroll, article')]"
    cut = f"{boxes}.filter((it) => it.scrollWidth > it.clientWidth)"
    assert page.execute_script(cut) == []
    heights = "return [...document.querySelectorAll('article svg text')].map((it) => it.getBoundingClientRect().height)"
    found = page.execute_script(heights)
    assert len(found) > 20
    assert min(found) > 11  # CSS pixels, of letters of 10


@pytest.mark.parametrize("size", [(1280, 800), PHONE])
def test_what_is_jumped_to_is_not_behind_the_legend(browser: Callable[..., Any], tmp_path: Path, size: Any) -> None:
    page = opened(browser(*size), write(tmp_path, 9))
    page.find_element("css selector", "nav a[href='#look']").send_keys("\ue007")  # Enter
    page.find_element("css selector", "#all summary").send_keys("\ue007")
    page.find_element("css selector", "a[href='#picture-5']").send_keys("\ue007")
    bottom, top = page.execute_script(
        "const bottom = document.getElementById('tools').getBoundingClientRect().bottom;"
        "return [bottom, document.querySelector('#picture-5 figcaption').getBoundingClientRect().top];"
    )
    assert 0 < bottom < size[1] / 4
    assert bottom <= top < bottom + 30


def test_panels_zoom_and_pan_together_by_keyboard(browser: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(browser(), write(tmp_path, 2))
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    group, zoom = page.find_element("css selector", ".panels"), page.find_element("css selector", "figure output")
    first, other = zoom.text, colors(page, 1, "candidate")
    marked, outlines = near(colors(page, 0, "difference"), BLUE, 40), near(colors(page, 0, "candidate"), GREEN, 2)
    group.send_keys("++")
    assert float(zoom.text.split()[0]) == pytest.approx(2.25 * float(first.split()[0]), rel=0.01)
    assert near(colors(page, 0, "difference"), BLUE, 40) > 3 * marked
    assert colors(page, 1, "candidate") == other  # each image has its own view
    group.send_keys("1")
    assert zoom.text == "100 %" or float(first.split()[0]) > 100  # never smaller than the whole picture
    group.send_keys("+++++++", *[keys.ARROW_LEFT] * 40)
    assert near(colors(page, 0, "difference"), BLUE, 40) == 0  # moved to the left edge, in all panels
    assert near(colors(page, 0, "candidate"), GREEN, 2) == 0
    group.send_keys("0")
    assert zoom.text == first
    assert near(colors(page, 0, "candidate"), GREEN, 2) == outlines


def test_classes_and_outlines_can_be_hidden(browser: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(browser(), write(tmp_path, 1))
    plain = {(60, 60, 60), (200, 200, 200)}
    for selector in ("[data-class='1']", "[data-option=outlines]"):
        box = page.find_element("css selector", selector)
        box.click()
        assert near(colors(page, 0, "candidate"), GREEN, 2) == 0
        box.click()
        assert near(colors(page, 0, "candidate"), GREEN, 2) > 200
    page.find_element("css selector", "[data-option=outlines]").click()
    found = colors(page, 0, "difference")
    assert sum(near(found, it, 6) for it in plain) > 0.8 * sum(found.values())


def test_all_pictures_are_shown_when_asked_for_and_by_links(browser: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(browser(), write(tmp_path, 9))
    shown = "return document.querySelectorAll('figure.picture:not([hidden])').length"
    assert page.execute_script(shown) == 6
    page.find_element("css selector", "#all summary").click()
    page.find_element("css selector", "a[href='#picture-9']").click()
    assert page.execute_script(shown) == 9
    page.refresh()
    page.get((tmp_path / "decision.html").as_uri())
    assert page.execute_script(shown) == 6
    page.find_element("css selector", "#more button").click()
    assert page.execute_script(shown) == 9
    assert not page.find_element("css selector", "#more").is_displayed()


def test_page_prints_its_pictures_and_runs_nothing_of_a_name(browser: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(browser(), write(tmp_path, 1))
    with_picture = len(page.print_page())
    page.execute_script("document.querySelectorAll('canvas').forEach((it) => { it.width = 1; })")
    assert with_picture > len(page.print_page()) + 2000  # characters of the PDF in base64
    assert page.find_elements("css selector", "img[src=x]") == []
    assert errors(page) == []


def test_page_of_a_first_version_shows_the_image_beside_the_candidate(
    browser: Callable[..., Any], tmp_path: Path
) -> None:
    page = opened(browser(), write(tmp_path, 1, production=None))
    assert [it.get_attribute("data-kind") for it in page.find_elements("css selector", "canvas")] == [
        "image",
        "candidate",
    ]
    assert near(colors(page, 0, "image"), GREEN, 2) == 0
    assert near(colors(page, 0, "candidate"), GREEN, 2) > 200
    assert errors(page) == []
