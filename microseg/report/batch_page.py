"""The page of a batch: counts, failures, histograms, and each image with its outlines and measurements.

``index.html`` is in the folder of the outputs; its data and thumbnails are in the folder ``page`` beside it, so that a
page of ten thousand images opens at once, from a disk as from a server.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic_core import to_json

from microseg.files import write_text_file
from microseg.outputs.batch_summary import BatchSummary
from microseg.outputs.colors import class_color
from microseg.outputs.columns import column
from microseg.outputs.record import Record, read_record
from microseg.parsing import parse_json
from microseg.report.slide_view import write_slide_view
from microseg.report.templates import load_template
from microseg.report.thumbnails import Thumbnails, write_thumbnails

__all__ = ["write_batch_page"]

_FOLDER = "page"
_SLIDES = "slides"  # views of slides, in that folder
_ROWS = 2000  # images in a file of data
_NAMED = 100  # images that are named in a list

_LABELS = {
    "area_mm2": "area (mm²)",
    "tissue_mm2": "tissue (mm²)",
    "glass_mm2": "glass (mm²)",
    "mean_confidence": "confidence",
    "mean_entropy": "uncertainty (entropy)",
    "ood_score": "out-of-distribution score",
}
_CLASS_LABELS = {"objects": "objects", "objects_per_mm2": "objects per mm²", "area_fraction": "fraction of the area"}


def write_batch_page(summary: BatchSummary, *, slide_view: bool = False) -> Path:
    """Write ``index.html`` beside the tables of a batch; it links to the files of the folder only.

    Args:
        summary: Summary of a finished batch.
        slide_view: Whether views of the slides at full resolution are written; see `write_slide_view`.

    Returns:
        Path of the page.
    """
    folder = summary.out
    facts = parse_json(summary.record.read_bytes(), any_names=True)
    records = [read_record(folder / name) for name in facts["records"]]
    thumbnails = write_thumbnails(records, folder, folder / _FOLDER / "thumbnails")
    views: list[str | None] = [None] * len(records)
    if slide_view:
        views = [write_slide_view(record, folder, folder / _FOLDER / _SLIDES) for record in records]
    columns = list(dict.fromkeys(name for record in records for name in record.summary))
    models = list(dict.fromkeys(record.provenance.model for record in records))
    classes = list(dict.fromkeys(name for record in records for name in record.classes[1:]))
    unlike = sorted(
        ((record.display_name, score) for record in records if (score := _ood_score(record)) > 1), key=lambda it: -it[1]
    )
    page = load_template("batch.html.j2", number=_number).render(
        summary=summary,
        failures=pd.read_csv(summary.failures, keep_default_na=False).to_dict("records"),
        provenance=facts["provenance"],
        models=Counter(record.provenance.model for record in records),
        unsized=[record.display_name for record in records if record.missing_pixel_size],
        unlike=unlike,
        named=_NAMED,
        columns=[(_label(name, classes), name, *_described(name)) for name in columns],
        colors=[(name, class_color(number)) for number, name in enumerate(classes, 1)],
        page_data={
            "columns": columns,
            "labels": [_label(it, classes) for it in columns],
            "models": models,
            "classes": classes,
            "folder": _FOLDER,
        },
        files=_write_rows(records, thumbnails, views, columns, models, folder / _FOLDER),
    )
    path = folder / "index.html"
    write_text_file(path, page)
    return path


def _write_rows(
    records: Sequence[Record],
    thumbnails: Sequence[Thumbnails],
    views: Sequence[str | None],
    columns: Sequence[str],
    models: Sequence[str],
    folder: Path,
) -> list[str]:
    """Write the data of the images, as scripts: a browser does not read other files of a disk."""
    rows: list[list[Any]] = [
        [
            record.name,
            record.display_name,
            record.width,
            record.height,
            record.mpp,
            models.index(record.provenance.model),
            record.missing_pixel_size,
            *pair,
            [record.summary.get(name) for name in columns],
            [*record.outputs.items(), *([] if view is None else [("slide view", f"{_FOLDER}/{_SLIDES}/{view}")])],
        ]
        for record, pair, view in zip(records, thumbnails, views, strict=True)
    ]
    files = []
    for start in range(0, len(rows), _ROWS):
        file = folder / f"rows-{start // _ROWS}.js"
        text = to_json(rows[start : start + _ROWS], inf_nan_mode="null").decode()
        write_text_file(file, f"microsegRows({text});\n")
        files.append(f"{_FOLDER}/{file.name}")
    for old in folder.glob("rows-*.js"):
        if f"{_FOLDER}/{old.name}" not in files:
            old.unlink()
    return files


def _described(name: str) -> tuple[str, str]:
    """Unit and meaning of a value; those of another version of microseg may be unknown."""
    try:
        return column(name)
    except KeyError:
        return "", ""


def _label(name: str, classes: Sequence[str]) -> str:
    """A value's name in words."""
    for each in sorted(classes, key=len, reverse=True):  # a name may end like another one
        for start, label in _CLASS_LABELS.items():
            if name == f"{start}_{each}":
                return f"{each}: {label}"
    return _LABELS.get(name, name.replace("_", " "))


def _ood_score(record: Record) -> float:
    score = record.summary.get("ood_score")
    return -math.inf if score is None else float(score)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
