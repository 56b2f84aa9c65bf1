"""The page of a batch as a person uses it, in Chromium, opened from the disk."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microseg.outputs.batch_summary import ImageResult, ImageTask, finish_batch
from microseg.outputs.record import Provenance, Record
from microseg.report.batch_page import write_batch_page
from microseg.slides.images import write_png
from tests.microseg.report.conftest import PHONE
from tests.microseg.report.test_decision_page_in_browser import errors

HOSTILE = "<img src=x onerror=alert(1)>"


def write(folder: Path, count: int) -> Path:
    """A page of images whose number of cells is their number, and whose other scores fall with it."""
    write_png(folder / "image.png", np.full((50, 100, 3), 200, np.uint8))
    out = folder / "out"
    out.mkdir()
    results = []
    for number in range(count):
        name = HOSTILE if number == 0 else f"case {number:05d}"
        record = Record(
            name=name,
            source=str(folder / "image.png"),
            source_sha256=None,
            width=100,
            height=50,
            mpp=None if number % 10 == 3 else 0.5,
            classes=("background", "cell"),
            provenance=Provenance(model=f"seg/{3 if number == 1 else 4}", inference={"model_mpp": 0.5}),
            outputs={},
            summary={
                "area_mm2": None if number % 10 == 3 else 0.00125,
                "objects_cell": number,
                "area_fraction_cell": number / count,
                "mean_confidence": 1 - number / count,
                "ood_score": 1.2 if number == 7 else 0.3,
            },
            created=datetime.now(UTC),
            seconds=0.1,
            software={},
        )
        (out / f"{name}.json").write_text(record.model_dump_json())
        results.append(ImageResult(ImageTask(folder / "image.png", name), record))
    return write_batch_page(finish_batch(results, out, outputs=["labels"], seconds=1.0))


@pytest.fixture
def page(browser: Callable[..., Any], tmp_path: Path) -> Any:
    found = browser()
    found.get(write(tmp_path, 60).as_uri())
    return found


def titles(page: Any) -> list[str]:
    return [it.text for it in page.find_elements("css selector", "#images strong")]


def choose(page: Any, select: str, text: str) -> None:
    [option] = [it for it in page.find_elements("css selector", f"#{select} option") if it.text.startswith(text)]
    option.click()


def test_pages_of_images_are_turned(page: Any) -> None:
    assert len(titles(page)) == 24
    assert titles(page)[:2] == [HOSTILE, "case 00001"]
    assert page.find_element("id", "where").text == "1 to 24 of 60"
    assert not page.find_element("id", "before").is_enabled()
    for _ in range(2):
        page.find_element("id", "after").click()
    assert titles(page) == [f"case {n:05d}" for n in range(48, 60)]
    assert not page.find_element("id", "after").is_enabled()
    assert page.find_elements("css selector", "img[src=x]") == []
    assert errors(page) == []


def test_images_are_sorted_searched_and_filtered(page: Any) -> None:
    choose(page, "sort", "cell: objects")
    page.find_element("id", "reverse").click()
    assert titles(page)[:2] == ["case 00059", "case 00058"]
    choose(page, "sort", "confidence")
    page.find_element("id", "reverse").click()
    assert titles(page)[0] == "case 00059"  # the least confident
    choose(page, "sort", "area (mm²)")
    assert len(titles(page)) == 24
    page.find_element("id", "search").send_keys("0003")
    assert titles(page) == [f"case {n:05d}" for n in (30, 31, 32, *range(34, 40), 3, 33)]  # the unknown ones last
    page.find_element("id", "search").clear()
    page.find_element("id", "search").send_keys("nothing of this name")
    assert page.find_element("id", "nothing").is_displayed()
    page.find_element("id", "search").clear()
    page.find_element("id", "search").send_keys(" ")
    choose(page, "only", "out of distribution (1)")
    assert titles(page) == ["case 00007"]
    choose(page, "only", "unknown pixel size (6)")
    assert len(titles(page)) == 6
    choose(page, "only", "seg/3 (1)")
    assert titles(page) == ["case 00001"]


def test_thumbnail_has_a_scale_bar(page: Any) -> None:
    image = page.find_element("css selector", "#images li:nth-child(2) .pair img").rect
    bar = page.find_element("css selector", "#images li:nth-child(2) .scalebar")
    assert bar.text == "20 µm"  # the image is 100 pixels of 0.5 microns wide
    assert bar.find_element("tag name", "i").rect["width"] == pytest.approx(image["width"] * 20 / 50, abs=1.5)
    assert image["height"] == pytest.approx(image["width"] / 2, abs=1)
    unknown = page.find_element("css selector", "#images li:nth-child(4) .scalebar")
    assert unknown.text == "50 px"


def test_histograms_of_each_class_and_score(page: Any) -> None:
    found = [it.text for it in page.find_elements("css selector", "#histograms h3")]
    assert found == ["cell: objects", "cell: fraction of the area", "confidence", "out-of-distribution score"]
    label = page.find_element("css selector", "#histograms svg").get_attribute("aria-label")
    assert label == "cell: objects: 60 images, from 0 to 59, median 29.5"
    bars = page.find_elements("css selector", "#histograms > div:first-child rect")
    assert len(bars) == 24
    assert "case 00007: 1.2" in page.find_element("id", "unlike").text  # named


@pytest.mark.parametrize("count", [1, 500])
def test_page_on_a_phone_of_one_image_and_of_many(browser: Callable[..., Any], tmp_path: Path, count: int) -> None:
    page = browser(*PHONE)
    page.get(write(tmp_path, count).as_uri())
    assert len(titles(page)) == min(24, count)
    assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    assert errors(page) == []
