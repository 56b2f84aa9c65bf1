"""The results of a batch: images, counts, and tables of all objects and all images."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from csv import DictReader, DictWriter
from csv import reader as csv_reader
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet
from pydantic_core import to_json

from microseg.config.params import OutOfDistributionSettings
from microseg.errors import DataError
from microseg.escaping import csv_cell, printable
from microseg.files import atomic_write, write_text_file
from microseg.models.reference_distribution import OutOfDistributionSummary, summarize_scores
from microseg.outputs.files import OUTPUTS
from microseg.outputs.measurements import OBJECT_COLUMNS, POSITIVE
from microseg.outputs.pixel_amounts import split_column
from microseg.outputs.record import Record

__all__ = ["BatchSummary", "ImageResult", "ImageTask", "finish_batch"]

_TYPES = {
    # all others are numbers
    "image": pa.string(),
    "label": pa.int64(),
    "class": pa.string(),
    "model": pa.string(),
}


@dataclass(frozen=True)
class ImageTask:
    """One image of a batch.

    Attributes:
        path: Path of the image.
        name: Stem of the names of its outputs.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class ImageResult:
    """The result of one image.

    Attributes:
        task: The image.
        record: Record of its outputs; None if it failed.
        skipped: Whether the outputs existed before.
        reason: Reason of the failure.
    """

    task: ImageTask
    record: Record | None = None
    skipped: bool = False
    reason: str = ""


@dataclass(frozen=True)
class BatchSummary:
    """Counts, times and tables of a batch.

    Attributes:
        out: Folder of the outputs.
        models: Model versions that segmented the images, such as ``microseg-segmenter/3``.
        images: Number of images.
        done: Images segmented in this run.
        skipped: Images whose outputs existed, of the same model and settings.
        failed: Images that could not be segmented.
        missing_pixel_size: Images without a pixel size, which were assumed to have that of the model.
        seconds: Time of the whole batch.
        megapixels: Size of the images segmented in this run.
        outputs: Names of the output writers.
        ood: Out-of-distribution scores of all segmented and skipped images.
        left_out: Files and folders beside the images that were not read, by name, and why.
        notes: What was decided about the images, such as pixel sizes of ``images.csv`` that override those of files.
    """

    out: Path
    models: tuple[str, ...]
    images: int
    done: int
    skipped: int
    failed: int
    missing_pixel_size: int
    seconds: float
    megapixels: float
    outputs: tuple[str, ...]
    ood: OutOfDistributionSummary
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """Numbers of the model versions."""
        return ", ".join(model.rpartition("/")[2] for model in self.models)

    @property
    def measurements(self) -> Path | None:
        """CSV table of all objects; also as Parquet. None without the output ``objects``."""
        return self.out / "measurements.csv" if "objects" in self.outputs else None

    @property
    def summary(self) -> Path:
        """CSV table of all images; also as Parquet."""
        return self.out / "summary.csv"

    @property
    def failures(self) -> Path:
        """CSV table of the images that failed, with the reasons."""
        return self.out / "failures.csv"

    @property
    def record(self) -> Path:
        """The summary itself, as JSON."""
        return self.out / "batch.json"


def finish_batch(
    results: Sequence[ImageResult],
    out: Path,
    *,
    outputs: Collection[str] = OUTPUTS,
    seconds: float,
    ood: OutOfDistributionSettings | None = None,
    left_out: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> BatchSummary:
    """Write the tables of a batch and its summary, after all images.

    Args:
        results: Results of all images.
        out: Folder of the outputs.
        outputs: Names of the output writers.
        seconds: Time of the whole batch.
        ood: When a batch counts as out of distribution; None for the defaults.
        left_out: See `BatchSummary`.
        notes: See `BatchSummary`.

    Returns:
        The summary.
    """
    records = [result.record for result in results if result.record is not None]
    fresh = [result.record for result in results if result.record is not None and not result.skipped]
    scores = [score for record in records if (score := record.summary.get("ood_score")) is not None]
    summary = BatchSummary(
        out=out,
        models=tuple(dict.fromkeys(record.provenance.model for record in records)),
        images=len(results),
        done=len(fresh),
        skipped=len(records) - len(fresh),
        failed=len(results) - len(records),
        missing_pixel_size=sum(record.missing_pixel_size for record in records),
        seconds=round(seconds, 3),
        megapixels=sum(record.width * record.height for record in fresh) / 1e6,
        outputs=tuple(dict.fromkeys(outputs)),
        ood=summarize_scores(scores, ood),
        left_out={printable(name): reason for name, reason in (left_out or {}).items()},
        notes=tuple(map(printable, notes)),
    )
    failures = [
        {"image": printable(str(it.task.path)), "reason": printable(it.reason)} for it in results if it.record is None
    ]
    _write_tables(summary, records, failures)
    return summary


def _write_tables(summary: BatchSummary, records: Sequence[Record], failures: Sequence[Mapping[str, str]]) -> None:
    rows = [
        {
            "image": Path(r.source).name,
            "name": r.name,
            "source": r.source,
            "width": r.width,
            "height": r.height,
        }
        | {"mpp": r.mpp, **r.summary, "seconds": r.seconds, "model": r.provenance.model, "sha256": r.source_sha256}
        for r in records
    ]
    images = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["image", "name", "source"])  # a header at least
    with atomic_write(summary.failures) as part:
        rows_of_failures = [{column: csv_cell(text) for column, text in row.items()} for row in failures]
        pd.DataFrame(rows_of_failures, columns=["image", "reason"]).to_csv(part, index=False)
    with atomic_write(summary.summary) as part:
        shown = images.map(lambda value: csv_cell(value) if isinstance(value, str) else value)
        shown.rename(columns=csv_cell).to_csv(part, index=False, float_format="%.6g")
    with atomic_write(summary.summary.with_suffix(".parquet")) as part:
        images.to_parquet(part, index=False)
    if summary.measurements is not None:
        with atomic_write(summary.measurements) as part:
            columns = _join_tables([(summary.out / it.outputs["objects"], it.provenance.model) for it in records], part)
        with atomic_write(summary.measurements.with_suffix(".parquet")) as part:
            _write_parquet(summary.measurements, part, columns)
    if tables := [summary.out / it.outputs["regions"] for it in records if "regions" in it.outputs]:
        options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # a region may be named NA
        regions = pd.concat([pd.read_csv(table, **options) for table in tables], ignore_index=True)
        with atomic_write(summary.out / "regions.csv") as part:
            regions.to_csv(part, index=False)
        with atomic_write(summary.out / "regions.parquet") as part:
            regions.to_parquet(part, index=False)
    else:  # those of an earlier run
        for suffix in (".csv", ".parquet"):
            (summary.out / f"regions{suffix}").unlink(missing_ok=True)
    provenance = {record.provenance.model: record.provenance for record in records}
    facts = {"kind": "microseg batch 1", **asdict(summary), "created": datetime.now(UTC), "provenance": provenance}
    facts["records"] = [f"{record.name}.json" for record in records]
    write_text_file(summary.record, to_json(facts, indent=2, inf_nan_mode="null").decode() + "\n")


def _join_tables(tables: Sequence[tuple[Path, str]], path: Path) -> tuple[str, ...]:
    """Concatenate CSV tables of objects, a line at a time.

    Values of columns that a table does not have are empty: those of an earlier microseg, or of stains and channels that
    were not measured. Tables of microseg 0.1 lack the model.

    Returns:
        The columns: those of all objects, then those of stains and intensities.

    Raises:
        DataError: A table has columns that no measurement has.
    """
    headers = [_header(table) for table, _ in tables]
    columns = tuple(dict.fromkeys([*OBJECT_COLUMNS, *itertools.chain.from_iterable(headers)]))
    with path.open("w", encoding="utf-8", newline="") as joined:
        joined.write(",".join(columns) + "\n")
        writer = DictWriter(joined, columns, lineterminator="\n")
        for (table, model), header in zip(tables, headers, strict=True):
            with table.open(encoding="utf-8", newline="") as lines:
                if header == columns:
                    next(lines, None)
                    joined.writelines(lines)
                else:
                    writer.writerows({"model": model} | row for row in DictReader(lines))
    return columns


def _header(table: Path) -> tuple[str, ...]:
    with table.open(encoding="utf-8", newline="") as lines:
        header = tuple(next(csv_reader(lines), ()))
    known = {*OBJECT_COLUMNS, POSITIVE}
    if unknown := [name for name in header if name not in known and split_column(name) is None]:
        raise DataError(
            f"{table}: expected the columns {','.join(OBJECT_COLUMNS)}, got also {','.join(unknown)}. Segment its "
            "image again."
        )
    return header


def _write_parquet(table: Path, path: Path, columns: Sequence[str]) -> None:
    """Convert the table of objects to Parquet, a block at a time."""
    types = {column: _TYPES.get(column, pa.float64()) for column in columns}
    options = csv.ConvertOptions(column_types=types)
    reader = csv.open_csv(table, convert_options=options)
    with parquet.ParquetWriter(path, pa.schema(list(types.items()))) as writer:
        for block in reader:
            writer.write_batch(block)
