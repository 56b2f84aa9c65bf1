"""The HTML page and the JSON report of the demo."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from microseg.files import write_text_file
from microseg.registry.decision import MET, Decision
from microseg.registry.model_card import format_measurement, measurement_name
from microseg.report.panels import data_uri
from microseg.report.templates import load_template

__all__ = ["Change", "DemoReport", "write_page", "write_report"]


@dataclass(frozen=True)
class Change:
    """A measurement before and after adaptation.

    Args:
        before: Of the first production model.
        after: Of the model in production at the end.
    """

    before: float
    after: float


@dataclass(frozen=True)
class DemoReport:
    """The results of the demo; written as ``report.json``.

    Args:
        labs: Names of ``lab_a``, the source lab, and ``lab_b``, the target lab.
        dice: Dice on the held-out test images of ``lab_a`` and ``lab_b``.
        dice_per_class: The same for each foreground class.
        candidate_dice: Dice of the candidate, also if it was refused.
        upper_bound: Dice on ``lab_b`` of a segmenter trained on its labels; None if unknown.
        recovered: Fraction of the Dice lost on ``lab_b`` that adaptation recovered; None if nothing was lost.
        images: Number of test images of each lab.
        decision: Decision of the gate.
        evidence: Label-free measurements on ``lab_b`` of the candidate and of the first production model.
        candidate_version: Version of the adapted model.
        production_version: Version in production at the end.
        lineage: Run, datasets, code and parameters of the outputs.
        batch: Image counts of the batch segmented at the end.
        timings: Seconds of each step.
        seconds: Total seconds.
        outputs: Paths of the outputs.
    """

    labs: Mapping[str, str]
    dice: Mapping[str, Change]
    dice_per_class: Mapping[str, Mapping[str, Change]]
    candidate_dice: Mapping[str, float]
    upper_bound: float | None
    recovered: float | None
    images: Mapping[str, int]
    decision: Decision
    evidence: Mapping[str, tuple[float | None, float | None]]
    candidate_version: int
    production_version: int
    lineage: Mapping[str, Any]
    batch: Mapping[str, int]
    timings: Mapping[str, float]
    seconds: float
    outputs: Mapping[str, str]


def write_report(demo: DemoReport, path: Path) -> None:
    """Write ``report.json``; unknown values are null.

    The decision is written as ``accepted`` (promoted to production), ``status`` (see `Decision`) and ``reasons``: for
    each rule a pair, whether it is met and the message.
    """
    values = asdict(demo)
    reasons = [(result.outcome == MET, result.message) for result in demo.decision.rules]
    values["decision"] = {"accepted": demo.decision.promoted, "status": demo.decision.status, "reasons": reasons}
    write_text_file(path, to_json(values, indent=2, inf_nan_mode="null").decode() + "\n")


def write_page(demo: DemoReport, panels: Sequence[Path], overlays: Sequence[Path], path: Path) -> None:
    """Write the page as one HTML file without external resources.

    Args:
        demo: The results.
        panels: Images of the target lab: image, reference, before, after.
        overlays: Images of the batch.
        path: File of the page.
    """
    page = load_template("demo.html.j2", number=format_measurement, measurement=measurement_name).render(
        demo=demo, panels=[data_uri(panel) for panel in panels], overlays=[data_uri(overlay) for overlay in overlays]
    )
    write_text_file(path, page)
