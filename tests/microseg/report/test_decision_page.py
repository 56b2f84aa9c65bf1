import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from microseg.config.params import GateSettings
from microseg.evaluation.comparison import Comparison
from microseg.registry.evidence import ConfidenceInterval, Evidence
from microseg.registry.gate import decide
from microseg.report.decision_page import Purpose, write_decision_page
from microseg.report.pictures import Picture
from tests.microseg.report.test_demo_page import Page

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
HOSTILE = "</script><img src=x onerror=alert(1)>"
PURPOSE = Purpose(("background", "gland <i>"), "1", ("lab_a", "lab <b>"))


def evidence(dice: float, stain: float, consistency: float, share: float) -> Evidence:
    free = {"stain_explained_variance": stain, "augmentation_consistency": consistency, "foreground_share": share}
    return Evidence({"lab_a": dice}, None, free | {"expected_foreground_share": 0.24, "images": 32})


PRODUCTION = evidence(0.78, 0.23, 0.83, 0.02)
"""As of shared/data/cytology, with its candidate that turned whole cells into nuclei."""


def picture(name: str, uncertainty: float) -> Picture:
    values = {"left": 0, "top": 0, "width": 1, "height": 1, "full_width": 1, "full_height": 1, "mpp": 0.5}
    return Picture(
        name=name, image=PIXEL, candidate=PIXEL, production=PIXEL, uncertainty=uncertainty, changed=0.25, **values
    )


def text_of(
    candidate: Evidence,
    path: Path,
    pictures: tuple[Picture, ...] = (),
    production: Evidence | None = PRODUCTION,
    purpose: Purpose = PURPOSE,
    uncertainty: dict[str, float] | None = None,
) -> str:
    dice = (candidate.source_dice["lab_a"], 0.78)
    scores = {"lab_a": {"dice": dice} | {f"dice_{name}": dice for name in purpose.classes[1:]}}
    comparison = Comparison(candidate, production, "lab <b>", scores, uncertainty or {})
    decision = replace(
        decide(candidate, production, GateSettings()), version=2, production_version=1 if production else None
    )
    write_decision_page(decision, comparison, purpose, pictures, path)
    return path.read_text(encoding="utf-8")


def words(text: str) -> str:
    visible = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    page = Page(visible)
    assert page.open == []
    return page.words


def test_page_of_a_candidate_that_needs_review(tmp_path: Path) -> None:
    found = words(text_of(evidence(0.78, 0.54, 0.92, 0.26), tmp_path / "decision.html"))
    for expected in (
        "Version 2: candidate for lab <b>",
        "Version 2 was made from version 1 for images of lab <b> (32 images evaluated), without outlines drawn by "
        "people there. It marks gland <i> in images.",
        "The automatic check cannot tell whether version 2 is better than version 1, which is in production: a person "
        "must look. If the pictures show that it is better: set the alias production on version 2 in MLflow. Otherwise "
        "do nothing: version 1 stays in production.",
        "lab <b> ? unknown No outlines of this lab",
        "lab_a = unchanged Overlap with outlines that people drew there: 78.0 % → 78.0 %.",
        "The candidate marks 26.0 % of the area, production 2.0 %; in the other labs people marked 24.0 %.",
        "cannot tell It marks about as much of the area as production The candidate marks 26.0%",
        "measurement candidate (version 2) production (version 1) lab_a Dice 0.780 0.780 lab <b> stain-explained",
        "foreground share 0.260 0.020",
        "microseg evaluate 2 draws them",
    ):
        assert expected in found, expected


@pytest.mark.parametrize(
    ("candidate", "production", "verdict", "next_step", "effect"),
    [
        (
            evidence(0.78, 0.24, 0.84, 0.06),
            evidence(0.78, 0.23, 0.83, 0.06),
            "The automatic check found nothing against it: version 2 may replace version 1, which is in production.",
            "If the pictures convince you, too: set the alias production on version 2",
            "△ likely gain",
        ),
        (
            evidence(0.60, 0.24, 0.84, 0.06),
            evidence(0.78, 0.23, 0.83, 0.06),
            "The automatic check refuses it. Not met: The other labs keep their quality (lab_a).",
            "You need to do nothing: version 1 stays in production. To promote it all the same, run microseg promote 2 "
            "--override REASON.",
            "lab_a ▼ loss Overlap with outlines that people drew there: 78.0 % → 60.0 %.",
        ),
        (
            evidence(0.78, 0.24, 0.84, 0.06),
            None,
            "The automatic check found nothing against it: version 2 may become the first version in production.",
            "Otherwise do nothing: no version goes into production.",
            "lab_a ▲ gain First model: 78.0 %",
        ),
    ],
)
def test_page_of_a_clear_decision(
    candidate: Evidence, production: Evidence | None, verdict: str, next_step: str, effect: str, tmp_path: Path
) -> None:
    found = words(text_of(candidate, tmp_path / "decision.html", production=production))
    assert verdict in found
    assert next_step in found
    assert effect in found
    assert ("--override" in found) == ("refuses" in verdict)


def test_effects_of_a_lost_lab_of_an_earlier_one_and_of_masks(tmp_path: Path) -> None:
    candidate = replace(
        evidence(0.80, 0.24, 0.84, 0.06),
        target_dice=ConfidenceInterval(0.7, 0.6, 0.8),
        target_gain=ConfidenceInterval(0.1, 0.04, 0.16),
    )
    purpose = replace(PURPOSE, labs=("lab_a", "lab <b>", "lab_early"), lost=("lab_lost",))
    text = text_of(candidate, tmp_path / "decision.html", purpose=purpose)
    found = words(text)
    assert "lab <b> ▲ gain Overlap with outlines that people drew there changes by +10.0 percentage points" in found
    assert "lab_a ▲ gain Overlap with outlines that people drew there: 78.0 % → 80.0 %." in found
    assert "lab_early ? unknown" in found
    assert "lab_lost ▽ likely loss" in found
    assert "Checks without drawn outlines" not in found  # masks decide
    only = words(text_of(candidate, tmp_path / "decision.html", purpose=replace(purpose, scope="lab <b>")))
    assert "lab_a = unchanged Nothing changes: the candidate would be used for images of lab <b> only." in only
    assert "lab_lost = unchanged" in only
    assert "set the alias production-lab <b> on version 2" in only


def test_measurements_of_each_class_are_listed_where_there_are_several(tmp_path: Path) -> None:
    candidate = evidence(0.78, 0.54, 0.92, 0.26)
    for classes, listed in ((("background", "gland"), 0), (("background", "gland", "lumen"), 1)):
        purpose = replace(PURPOSE, classes=classes)
        found = words(text_of(candidate, tmp_path / "decision.html", purpose=purpose))
        assert found.count("Dice, gland 0.780 0.780") == listed


def test_page_shows_pictures_and_lists_all_images(tmp_path: Path) -> None:
    pictures = (picture(HOSTILE, 0.4), picture("b", 0.2))
    text = text_of(
        evidence(0.78, 0.24, 0.84, 0.06), tmp_path / "decision.html", pictures, uncertainty={"c": 0.1, "b": 0.2}
    )
    assert HOSTILE not in text
    assert text.count("<script") == text.count("</script>") == 3
    data = re.search(r'<script type="application/json" id="pictures">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert [it["name"] for it in json.loads(data[1])] == [HOSTILE, "b"]
    found = words(text)
    assert "2 of 3 images, the most uncertain first" in found
    assert f"1. {HOSTILE} · uncertainty 40.0 % · 25.0 % of the image differs" in found
    for row in (f"{HOSTILE} 40.0 % picture 1", "b 20.0 % picture 2", "c 10.0 % not on this page"):
        assert row in found
    addresses = Page(re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)).addresses
    assert all(it.startswith("#") for it in addresses)  # nothing from outside
    assert "url(" not in text
    assert "@import" not in text


def test_charts_show_the_candidate_among_the_models_of_the_study(tmp_path: Path) -> None:
    text = text_of(evidence(0.78, 0.24, 0.93, 0.02), tmp_path / "decision.html")
    assert text.count("<svg viewBox") == 3  # consistency, stain, area: those that were measured
    found = words(text)
    assert "This value rose at least as far in 8 of the 61 models of the study: 8 of these were really better" in found
    assert "accepted (23)" in found
    assert "left to a person (17)" in found
    assert "refused (21)" in found
