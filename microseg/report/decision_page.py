"""The HTML page of the gate's decision on a candidate: for the person who has to look."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from microseg.evaluation.comparison import Comparison
from microseg.files import write_text_file
from microseg.registry.decision import Decision
from microseg.registry.model_card import format_measurement
from microseg.report.panels import data_uri

__all__ = ["write_decision_page"]


def write_decision_page(decision: Decision, comparison: Comparison, panels: Sequence[Path], path: Path) -> None:
    """Write the page as one HTML file without external resources.

    Args:
        decision: The decision, with the numbers of both versions.
        comparison: The measurements.
        panels: Images of the target lab with the segmentations of both versions side by side.
        path: File of the page.
    """
    environment = Environment(
        loader=PackageLoader("microseg.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.filters["number"] = format_measurement
    page = environment.get_template("decision.html.j2").render(
        decision=decision, comparison=comparison, panels=[data_uri(panel) for panel in panels]
    )
    write_text_file(path, page)
