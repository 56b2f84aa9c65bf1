"""The tables and the record of a whole batch."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from microseg.data.atomic import replacing
from microseg.inference.measurements import OBJECT_COLUMNS
from microseg.inference.record import Provenance, Record

__all__ = ["BatchSummary", "Failure", "write_tables"]

_TYPES = {"image": pa.string(), "label": pa.int64(), "class": pa.string()}  # all others are numbers


@dataclass(frozen=True)
class Failure:
    """An image that was passed over.

    Attributes:
        image: its path.
        reason: what was expected, what came, what to do.
    """

    image: str
    reason: str


@dataclass(frozen=True)
class BatchSummary:
    """How a batch went.

    Attributes:
        images: asked for.
        done: segmented now.
        skipped: had been segmented before, with the same model and settings.
        failed: passed over; ``failures`` says why.
        unsized: done, but of unknown pixel size, and therefore taken to be at the model's.
        seconds: of the whole batch.
        megapixels: of the images segmented now.
        measurements: table of all objects of done and skipped images; None where objects were not asked for.
        summary: table of all done and skipped images.
        failures: table of the images passed over.
        record: the batch itself, as JSON.
    """

    images: int
    done: int
    skipped: int
    failed: int
    unsized: int
    seconds: float
    megapixels: float
    measurements: Path | None
    summary: Path
    failures: Path
    record: Path


def write_tables(
    summary: BatchSummary,
    records: Sequence[Record],
    failures: Sequence[Failure],
    out: Path,
    outputs: Collection[str],
    provenance: Provenance,
) -> None:
    """Write the files that the summary names, each whole or not at all, and CSV tables also as Parquet.

    Args:
        summary: of the batch.
        records: of the images that are done.
        failures: of the others.
        out: where their outputs are.
        outputs: that were asked for.
        provenance: what made them.
    """
    rows = [
        {"image": Path(r.source).name, "name": r.name, "source": r.source, "width": r.width, "height": r.height}
        | {"mpp": r.mpp, **r.summary, "seconds": r.seconds, "sha256": r.source_sha256}
        for r in records
    ]
    with replacing(summary.failures) as part:
        pd.DataFrame([asdict(failure) for failure in failures], columns=["image", "reason"]).to_csv(part, index=False)
    images = pd.DataFrame(rows)
    with replacing(summary.summary) as part:
        images.to_csv(part, index=False, float_format="%.6g")
    with replacing(summary.summary.with_suffix(".parquet")) as part:
        images.to_parquet(part, index=False)
    if summary.measurements is not None:
        with replacing(summary.measurements) as part:
            _join_tables([out / record.outputs["objects"] for record in records], part)
        with replacing(summary.measurements.with_suffix(".parquet")) as part:
            _write_parquet(summary.measurements, part)
    facts = {key: value.name if isinstance(value, Path) else value for key, value in asdict(summary).items()}
    facts |= {"created": datetime.now(UTC).isoformat(), "provenance": provenance.model_dump(mode="json")}
    facts |= {"outputs": sorted(outputs), "records": [f"{record.name}.json" for record in records]}
    with replacing(summary.record) as part:
        part.write_text(json.dumps({"kind": "microseg batch 1", **facts}, indent=2) + "\n", encoding="utf-8")


def _join_tables(tables: Sequence[Path], path: Path) -> None:
    """Put CSV tables of the same columns below one another, a line at a time."""
    with path.open("w", encoding="utf-8") as joined:
        joined.write(",".join(OBJECT_COLUMNS) + "\n")
        for table in tables:
            with table.open(encoding="utf-8") as lines:
                next(lines, None)
                joined.writelines(lines)


def _write_parquet(table: Path, path: Path) -> None:
    """The same table as Parquet, a block at a time."""
    types = {column: _TYPES.get(column, pa.float64()) for column in OBJECT_COLUMNS}
    options = csv.ConvertOptions(column_types=types)
    reader = csv.open_csv(table, convert_options=options)
    with parquet.ParquetWriter(path, pa.schema(list(types.items()))) as writer:
        for block in reader:
            writer.write_batch(block)
