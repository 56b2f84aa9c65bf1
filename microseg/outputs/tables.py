"""What tells of a whole batch: its counts and its tables, when all its parts are done."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from microseg.config.params import OutOfDistributionSettings
from microseg.files import atomic_write
from microseg.models.reference_distribution import OutOfDistributionSummary, summarize_scores
from microseg.outputs.files import OUTPUTS
from microseg.outputs.measurements import OBJECT_COLUMNS
from microseg.outputs.record import Record, read_record

__all__ = ["BatchSummary", "ImageResult", "ImageTask", "finish_batch"]

_TYPES = {"image": pa.string(), "label": pa.int64(), "class": pa.string()}  # all others are numbers


@dataclass(frozen=True)
class ImageTask:
    """One image of a batch.

    Attributes:
        path: of the image.
        name: how the names of its outputs begin.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class ImageResult:
    """What became of one image.

    Attributes:
        job: the image.
        record: file that leads to its outputs; None when it was passed over.
        skipped: whether the outputs had been there before.
        unsized: whether its pixel size is unknown, and was therefore taken to be the model's.
        reason: why it was passed over.
    """

    job: ImageTask
    record: Path | None = None
    skipped: bool = False
    missing_pixel_size: bool = False
    reason: str = ""


@dataclass(frozen=True)
class BatchSummary:
    """How a batch went.

    Attributes:
        images: asked for.
        done: segmented now.
        skipped: had been segmented before, with the same model and settings.
        failed: passed over; ``failures`` says why.
        unsized: done or skipped, but of unknown pixel size, and therefore taken to be at the model's.
        seconds: of the whole batch.
        megapixels: of the images segmented now.
        measurements: table of all objects of done and skipped images; None where objects were not asked for.
        summary: table of all done and skipped images.
        failures: table of the images passed over.
        record: the batch itself, as JSON.
        ood_score: how far the done and skipped images lie from those that the model knows.
    """

    images: int
    done: int
    skipped: int
    failed: int
    missing_pixel_size: int
    seconds: float
    megapixels: float
    measurements: Path | None
    summary: Path
    failures: Path
    record: Path
    ood_score: OutOfDistributionSummary


def finish_batch(
    outcomes: Sequence[ImageResult],
    out: Path,
    *,
    outputs: Collection[str] = OUTPUTS,
    seconds: float,
    ood_score: OutOfDistributionSettings | None = None,
) -> BatchSummary:
    """Write what tells of the whole batch, when all its parts are done; CSV tables also as Parquet.

    Args:
        outcomes: of all parts.
        out: the batch's folder.
        outputs: that were asked for.
        seconds: that it took.
        ood_score: when the batch has drifted from what the model knows; the defaults where None.

    Returns:
        Counts, times and tables.
    """
    records = {outcome.job.name: read_record(outcome.record) for outcome in outcomes if outcome.record is not None}
    fresh = [records[outcome.job.name] for outcome in outcomes if outcome.record is not None and not outcome.skipped]
    summary = BatchSummary(
        images=len(outcomes),
        done=len(fresh),
        skipped=len(records) - len(fresh),
        failed=len(outcomes) - len(records),
        missing_pixel_size=sum(outcome.missing_pixel_size for outcome in outcomes),
        seconds=round(seconds, 3),
        megapixels=sum(record.width * record.height for record in fresh) / 1e6,
        measurements=out / "measurements.csv" if "objects" in outputs else None,
        summary=out / "summary.csv",
        failures=out / "failures.csv",
        record=out / "batch.json",
        ood_score=summarize_scores(
            [it for record in records.values() if (it := record.summary.get("ood_score")) is not None], ood_score
        ),
    )
    failures = [{"image": str(o.job.path), "reason": o.reason} for o in outcomes if o.record is None]
    _write_tables(summary, list(records.values()), failures, out, outputs)
    return summary


def _write_tables(
    summary: BatchSummary,
    records: Sequence[Record],
    failures: Sequence[Mapping[str, str]],
    out: Path,
    outputs: Collection[str],
) -> None:
    rows = [
        {"image": Path(r.source).name, "name": r.name, "source": r.source, "width": r.width, "height": r.height}
        | {"mpp": r.mpp, **r.summary, "seconds": r.seconds, "model": r.provenance.model, "sha256": r.source_sha256}
        for r in records
    ]
    images = pd.DataFrame(rows)
    with atomic_write(summary.failures) as part:
        pd.DataFrame(failures, columns=["image", "reason"]).to_csv(part, index=False)
    with atomic_write(summary.summary) as part:
        images.to_csv(part, index=False, float_format="%.6g")
    with atomic_write(summary.summary.with_suffix(".parquet")) as part:
        images.to_parquet(part, index=False)
    if summary.measurements is not None:
        with atomic_write(summary.measurements) as part:
            _join_tables([out / record.outputs["objects"] for record in records], part)
        with atomic_write(summary.measurements.with_suffix(".parquet")) as part:
            _write_parquet(summary.measurements, part)
    facts = {key: value.name if isinstance(value, Path) else value for key, value in asdict(summary).items()}
    models = {r.provenance.model: r.provenance.model_dump(mode="json") for r in records}
    facts["ood_score"] = {
        key: value if np.isfinite(value) else None for key, value in asdict(summary.ood_score).items()
    }
    facts |= {"created": datetime.now(UTC).isoformat(), "provenance": models, "outputs": sorted(outputs)}
    facts |= {"records": [f"{record.name}.json" for record in records]}
    with atomic_write(summary.record) as part:
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
