from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from microseg.config.params import GateSettings
from microseg.evaluation.comparison import Comparison
from microseg.registry.evidence import Evidence
from microseg.registry.gate import decide
from microseg.report.decision_page import write_decision_page
from microseg.report.panels import data_uri
from microseg.slides.images import write_png
from tests.microseg.report.test_demo_page import Page


def evidence(dice: float, stain: float, consistency: float, share: float) -> Evidence:
    free = {"stain_explained_variance": stain, "augmentation_consistency": consistency, "foreground_share": share}
    return Evidence({"lab_a": dice}, None, free | {"expected_foreground_share": 0.24, "images": 32})


PRODUCTION = evidence(0.78, 0.23, 0.83, 0.02)
"""As of shared/data/cytology, with its candidate that turned whole cells into nuclei."""


def page(
    candidate: Evidence, path: Path, panels: tuple[Path, ...] = (), production: Evidence | None = PRODUCTION
) -> Page:
    scores = {"lab_a": {"dice": (candidate.source_dice["lab_a"], 0.78)}}
    comparison = Comparison(candidate, production, "lab <b>", scores)
    decision = replace(
        decide(candidate, production, GateSettings()), version=2, production_version=1 if production else None
    )
    write_decision_page(decision, comparison, panels, path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    found = Page(text)
    assert found.open == []
    return found


def test_page_of_a_candidate_that_needs_review(tmp_path: Path) -> None:
    write_png(tmp_path / "p.png", np.full((4, 4, 3), 200, np.uint8))
    found = page(evidence(0.78, 0.54, 0.92, 0.26), tmp_path / "decision.html", (tmp_path / "p.png",))
    assert found.addresses == [data_uri(tmp_path / "p.png")]
    for text in (
        "Version 2 needs review: the gate cannot tell",
        "Compared with version 1, in production, on images of lab <b>.",
        "A person must look The candidate marks 26.0% of the target lab's images as foreground, production 2.0%.",
        "Look at both side by side: ",
        "microseg promote 2 --override REASON",
        "✓ On the target lab augmentation consistency is 92.0% (production: ",
        "? The candidate marks 26.0%",
        "lab <b>: foreground share 0.260 0.020",
        "lab_a: Dice 0.780 0.780",
    ):
        assert text in found.words, text
    assert not any(word in found.words for word in ("accepted", "refused", "✗"))


@pytest.mark.parametrize(
    ("candidate", "production", "title", "heading"),
    [
        (
            evidence(0.78, 0.24, 0.84, 0.06),
            evidence(0.78, 0.23, 0.83, 0.06),
            "accepted",
            "Every rule of the gate is met",
        ),
        (
            evidence(0.60, 0.24, 0.84, 0.06),
            evidence(0.78, 0.23, 0.83, 0.06),
            "refused",
            "A rule of the gate is not met",
        ),
        (evidence(0.78, 0.24, 0.84, 0.06), None, "accepted", "Every rule of the gate is met"),
    ],
)
def test_page_of_a_clear_decision(
    candidate: Evidence, production: Evidence | None, title: str, heading: str, tmp_path: Path
) -> None:
    words = page(candidate, tmp_path / "decision.html", production=production).words
    assert f"Version 2 {title} " in words
    assert heading in words
    assert "--override" not in words
    assert ("A first version" in words) == (production is None)
    if title == "refused":
        assert f"{heading} On the held-out images of lab_a the candidate loses 0.180 Dice" in words
