"""One page that shows the way of a lab's images from landing to production."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from microseg.report.panels import data_uri

__all__ = ["Change", "DecisionSummary", "DemoReport", "write_page", "write_report"]


@dataclass(frozen=True)
class Change:
    """A figure before and after.

    Attributes:
        before: of the first production model.
        after: of the model in production at the end.
    """

    before: float
    after: float


@dataclass(frozen=True)
class DecisionSummary:
    """The gate's decision.

    Attributes:
        accepted: whether the candidate went into production.
        reasons: one sentence for each rule, and whether it was met.
    """

    accepted: bool
    reasons: Sequence[tuple[bool, str]]


@dataclass(frozen=True)
class DemoReport:
    """What happened, in figures and files; written as ``report.json``.

    Attributes:
        labs: the names of ``lab_a``, the labelled lab, and ``lab_b``, the new one.
        dice: on images with masks that no training saw, by ``lab_a`` and ``lab_b``.
        dice_per_class: the same for each foreground class.
        candidate_dice: of the candidate, also where it was refused.
        upper_bound: Dice on ``lab_b`` of a segmenter trained on its labels, where known.
        recovered: share of the Dice lost on ``lab_b`` that came back; None where nothing was lost.
        images: number of images behind each figure of ``dice``.
        decision: the gate's.
        evidence: label-free figures on ``lab_b``, candidate and first production model.
        first_version: the first production model.
        candidate_version: the adapted one.
        production_version: the one in production at the end.
        lineage: what made the production model and the outputs.
        batch: counts of the batch segmented at the end.
        timings: seconds of each step.
        seconds: of all.
        outputs: paths.
    """

    labs: Mapping[str, str]
    dice: Mapping[str, Change]
    dice_per_class: Mapping[str, Mapping[str, Change]]
    candidate_dice: Mapping[str, float]
    upper_bound: float | None
    recovered: float | None
    images: Mapping[str, int]
    decision: DecisionSummary
    evidence: Mapping[str, tuple[float | None, float | None]]
    first_version: int
    candidate_version: int
    production_version: int
    lineage: Mapping[str, Any]
    batch: Mapping[str, int]
    timings: Mapping[str, float]
    seconds: float
    outputs: Mapping[str, str]


def write_report(demo: DemoReport, path: Path) -> None:
    """Write ``report.json``; what is not known is null."""
    _replace(path, json.dumps(_without_nan(asdict(demo)), indent=2) + "\n")


def write_page(demo: DemoReport, panels: Sequence[Path], overlays: Sequence[Path], path: Path) -> None:
    """Write the page: one HTML file that needs nothing else.

    Args:
        demo: what happened.
        panels: pictures of the new lab: image, reference, before, after.
        overlays: pictures from the batch.
        path: of the page.
    """
    environment = Environment(
        loader=PackageLoader("microseg.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.filters["number"] = _number
    page = environment.get_template("demo.html.j2").render(
        demo=demo, panels=[data_uri(panel) for panel in panels], overlays=[data_uri(overlay) for overlay in overlays]
    )
    _replace(path, page)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
