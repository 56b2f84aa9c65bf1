import dataclasses
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microseg.registry.decision import Decision, Outcome, RuleResult, Verdict
from microseg.report.demo_page import Change, DemoReport, write_page, write_report
from microseg.report.panels import data_uri
from microseg.slides.images import write_png


def decision(verdict: Verdict, *results: tuple[Outcome, str]) -> Decision:
    return Decision(verdict, tuple(RuleResult(outcome, "a rule", message) for outcome, message in results), 2, 1)


REPORT = DemoReport(
    labs={"lab_a": "hospital-a", "lab_b": "hospital-b"},
    dice={"lab_a": Change(0.91, 0.905), "lab_b": Change(0.5, 0.8)},
    dice_per_class={"lab_a": {"gland": Change(0.91, 0.905)}, "lab_b": {"gland": Change(0.5, 0.8)}},
    candidate_dice={"lab_a": 0.905, "lab_b": 0.8},
    upper_bound=None,
    recovered=0.731,
    images={"lab_a": 12, "lab_b": 7},
    decision=decision("accepted", ("met", "It kept its Dice."), ("met", "It is consistent.")),
    evidence={
        "augmentation_consistency": (0.87, 0.61),
        "entropy": (0.1, None),
        "ood_score": (1.0, 2.0),
        "images": (32, 1234),
    },
    candidate_version=2,
    production_version=2,
    lineage={"dataset hospital-a": "0a.dir", "run": "r1"},
    batch={"images": 7, "done": 7, "skipped": 0, "failed": 0},
    timings={"Train": 61.2},
    seconds=99.9,
    outputs={"segmentations": "/data/out"},
)


class Page(HTMLParser):
    """Text, URLs and open tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.addresses, self.open = "", list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.words += " ".join(data.split()) + " "


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    write_png(tmp_path / "p.png", np.full((4, 4, 3), 200, np.uint8))
    return tmp_path / "p.png"


def page(demo: DemoReport, tmp_path: Path, panels: tuple[Path, ...] = (), overlays: tuple[Path, ...] = ()) -> Page:
    write_page(demo, panels, overlays, tmp_path / "pages" / "report.html")
    assert [file.name for file in (tmp_path / "pages").iterdir()] == ["report.html"]
    return Page((tmp_path / "pages" / "report.html").read_text(encoding="utf-8"))


def test_page_shows_all_results(tmp_path: Path) -> None:
    words = page(REPORT, tmp_path).words
    for text in (
        "hospital-a → hospital-b", "0.500 → 0.800", "0.910 → 0.905", "73 %", "accepted",
        "version 2; in production: version 2", "(12 images)", "(7 images)", "It kept its Dice.",
        "augmentation consistency 0.610 0.870", "prediction entropy – 0.100",
        "median out-of-distribution score (limit: 1) 2.000 1.000", "images evaluated 1,234 32 ", "0a.dir",
        "Train 61 s", "total 100 s", "/data/out",
    ):  # fmt: skip
        assert text in words, text
    assert "failed" not in words
    assert "stays in production" not in words


def test_page_of_a_refused_candidate(tmp_path: Path) -> None:
    results = ("met", "It kept its Dice."), ("not met", "It marks everything."), ("unclear", "Far more: look.")
    reasons = decision("refused", *results)
    demo = dataclasses.replace(
        REPORT,
        decision=reasons,
        production_version=1,
        batch=REPORT.batch | {"failed": 2},
        upper_bound=0.86,
        recovered=None,  # type: ignore[operator]
    )
    seen = page(demo, tmp_path)
    assert "refused" in seen.words
    assert "accepted" not in seen.words
    assert "version 2; in production: version 1" in seen.words
    assert "the candidate's Dice is 0.800 on hospital-b and 0.905 on hospital-a" in seen.words
    assert "2 failed" in seen.words
    assert "reaches 0.860" in seen.words
    assert "– of the Dice lost" in seen.words
    text = (tmp_path / "pages" / "report.html").read_text(encoding="utf-8")
    assert '<li class="fail">It marks everything.' in text
    assert '<li class="pass">It kept its Dice.' in text
    assert '<li class="unclear">Far more: look.' in text


def test_page_of_a_candidate_that_needs_review(tmp_path: Path) -> None:
    reasons = decision("needs review", ("met", "It kept its Dice."), ("unclear", "Far more foreground: look at both."))
    demo = dataclasses.replace(REPORT, decision=reasons, production_version=1)
    words = page(demo, tmp_path).words
    assert (
        "Needs review: the gate cannot tell needs review A person must look. Far more foreground: look at both."
        in words
    )
    assert "microseg promote 2 --override REASON" in words
    assert "The first model stays in production" in words
    assert not any(word in words for word in ("Promotion gate", "accepted", "refused"))
    text = (tmp_path / "pages" / "report.html").read_text(encoding="utf-8")
    assert text.count("Far more foreground") == 1
    assert text.count('<span class="decision review">needs review</span>') == 2
    write_report(demo, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())["decision"]
    assert (written["accepted"], written["status"]) == (False, "needs review")
    assert [met for met, _ in written["reasons"]] == [True, False]


def test_page_shows_several_classes(tmp_path: Path) -> None:
    classes = {"gland": Change(0.5, 0.8), "lumen": Change(0.25, math.nan)}
    demo = dataclasses.replace(REPORT, dice_per_class={"lab_a": {}, "lab_b": classes})
    words = page(demo, tmp_path).words
    assert "gland 0.500 0.800" in words
    assert "lumen 0.250 –" in words
    assert "gland 0.500 0.800" not in page(REPORT, tmp_path).words


def test_page_has_no_external_resources(tmp_path: Path, picture: Path) -> None:
    seen = page(REPORT, tmp_path, (picture, picture), (picture,))
    assert seen.addresses == [data_uri(picture)] * 3
    assert seen.open == []


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert('&')</script>"
    demo = dataclasses.replace(
        REPORT,
        labs={"lab_a": name, "lab_b": name},
        decision=decision("accepted", ("met", name)),
        lineage={name: name},
        outputs={"segmentations": name},
    )
    seen = page(demo, tmp_path)
    assert seen.words.count("alert('&')") >= 6
    assert "script" not in (tmp_path / "pages" / "report.html").read_text(encoding="utf-8").replace(
        "&lt;script", ""
    ).replace("/script&gt;", "")


def test_report_is_valid_json(tmp_path: Path) -> None:
    unknown: dict[str, Any] = {"evidence": {"augmentation_consistency": (math.nan, None)}, "upper_bound": math.inf}
    write_report(dataclasses.replace(REPORT, **unknown), tmp_path / "deep" / "report.json")
    text = (tmp_path / "deep" / "report.json").read_text()
    back = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert back["evidence"] == {"augmentation_consistency": [None, None]}
    assert back["upper_bound"] is None
    assert back["dice"]["lab_b"] == {"before": 0.5, "after": 0.8}
    assert back["decision"]["reasons"][0] == [True, "It kept its Dice."]
    assert back.keys() == {field.name for field in dataclasses.fields(DemoReport)}
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["report.json"]
