"""The HTML page of a batch: counts, failures, and each image with its measurements and files."""

import json
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from microseg.files import write_text_file
from microseg.outputs.batch_summary import BatchSummary
from microseg.outputs.record import read_record

__all__ = ["write_batch_page"]

_MOST = 500  # images shown on the page; the tables have all


def write_batch_page(summary: BatchSummary) -> Path:
    """Write ``index.html`` beside the tables of a batch; it links to the files of the folder only.

    Args:
        summary: Summary of a finished batch.

    Returns:
        Path of the page.
    """
    folder = summary.out
    facts = json.loads(summary.record.read_text(encoding="utf-8"))
    records = [read_record(folder / name) for name in facts["records"][:_MOST]]
    failures = pd.read_csv(summary.failures).to_dict("records")
    environment = Environment(
        loader=PackageLoader("microseg.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.filters["number"] = _number
    names = list(dict.fromkeys(name for record in records for name in record.summary))
    page = environment.get_template("batch.html.j2").render(
        summary=summary, records=records, failures=failures, provenance=facts["provenance"], names=names, most=_MOST
    )
    path = folder / "index.html"
    write_text_file(path, page)
    return path


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
