"""One page on a batch: what was done, what failed and why, each image with its files."""

import json
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from microseg.files import atomic_write
from microseg.outputs.record import read_record
from microseg.outputs.tables import BatchSummary

__all__ = ["write_batch_page"]

_MOST = 500  # images shown on the page; the tables have all


def write_batch_page(summary: BatchSummary) -> Path:
    """Write ``index.html`` beside the batch's tables; it shows the files that lie there and needs nothing else.

    Args:
        summary: of a batch that is finished.

    Returns:
        The page.
    """
    folder = summary.record.parent
    facts = json.loads(summary.record.read_text(encoding="utf-8"))
    records = [read_record(folder / name) for name in facts["records"][:_MOST]]
    failures = pd.read_csv(summary.failures).to_dict("records")
    environment = Environment(
        loader=PackageLoader("microseg.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.filters["figure"] = _figure
    names = list(dict.fromkeys(name for record in records for name in record.summary))
    page = environment.get_template("batch.html.j2").render(
        summary=summary, records=records, failures=failures, provenance=facts["provenance"], names=names, most=_MOST
    )
    path = folder / "index.html"
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
