"""Images → masks, outlines, overlays, measurements (segmentation mode).

    python -m flows.segment slides/2026-11

The production model segments a folder's images, some at a time: each such chunk takes the version that is in production
when it begins. What was segmented before by the same version, with the same settings, is skipped; an image that cannot
be read is recorded and passed over.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.distribute import map_on_dask
from flows.records import SegmentRecord
from flows.validate_promotion import apply_pending_changes
from flows.workspace import open_workspace
from microseg.api.segmenter import Segmenter
from microseg.config.settings import Settings, load_settings
from microseg.datasets.lab import image_key, image_name, read_image_table, read_lab_metadata
from microseg.errors import DataError
from microseg.inference.batch import plan_batch, segment_images
from microseg.inference.options import BatchOptions, Sizes
from microseg.outputs.tables import BatchSummary, ImageResult, ImageTask, finish_batch
from microseg.registry.version import PRODUCTION, ModelVersion, production_of
from microseg.report.batch_page import write_batch_page
from microseg.report.panels import data_uri
from microseg.slides.readers import readable_suffixes

__all__ = ["command", "segment"]


@dataclass(frozen=True)
class BatchSpec:
    """How all images of a batch are segmented.

    Attributes:
        model: version or alias.
        lab: whose images they are, where known.
        out: folder of the outputs.
        options: what is asked for.
        settings: of this run.
    """

    model: str
    lab: str | None
    out: Path
    options: BatchOptions
    settings: Settings


@dataclass(frozen=True)
class Chunk:
    """Some images of a batch: the first and the last by their number, from 1."""

    first: int
    last: int
    jobs: tuple[ImageTask, ...]


@task(retries=1, retry_delay_seconds=5, cache_policy=NO_CACHE, task_run_name="images {part.first} to {part.last}")
def segment_chunk(
    part: Chunk, order: BatchSpec, progress: Callable[[], None] | None = None
) -> tuple[str, tuple[ImageResult, ...]]:
    """Segment some images with the version that is in use when it begins."""
    version = _version(order.model, order.lab, order.settings)
    segmenter = _ready(version, order.settings)
    outcomes = segment_images(
        segmenter.engine,
        part.jobs,
        order.out,
        provenance=segmenter.provenance,
        options=order.options,
        reference=segmenter.reference,
        progress=None if progress is None else lambda _done, _total: progress(),
    )
    return str(version.version), outcomes


@flow(name="segment", flow_run_name="segment {folder}")
def segment(
    folder: Path,
    model: str = PRODUCTION,
    out: Path | None = None,
    mpp: float | None = None,
    keep: bool = False,
    changes: tuple[str, ...] = (),
) -> SegmentRecord:
    """Segment all images of a folder with a registered version.

    Args:
        folder: of images, or a lab's folder with images/ and lab.yaml.
        model: version or alias; ``production`` means the lab's own version where it has one.
        out: where the outputs go; a folder in microseg's home by default.
        mpp: microns per pixel of all images; by default what images.csv, lab.yaml or the files say.
        keep: leave what an earlier version has made of an unchanged image.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    began = time.perf_counter()
    images = _images(folder)
    lab = _lab(folder)
    version = _version(model, lab, settings)  # before anything is made: there may be none
    out = out or settings.home.segmentations / folder.absolute().name
    sizes = _sizes(folder, images) if mpp is None else mpp
    order = BatchSpec(model, lab, out, _options(sizes, keep, settings), settings)
    chunks = _chunks(plan_batch(images, out), settings.params.inference.chunk_size)
    with progress_bar(
        f"Segmenting with version {version.version}", sum(len(chunk.jobs) for chunk in chunks)
    ) as advance:
        if settings.params.inference.workers > 1 or settings.params.inference.dask_scheduler:
            done = map_on_dask(segment_chunk, chunks, order, settings, lambda chunk: [advance("") for _ in chunk.jobs])
        else:
            done = [segment_chunk(chunk, order, lambda: advance("")) for chunk in chunks]
    outcomes = [outcome for _, part in done for outcome in part]
    summary = finish_batch(
        outcomes,
        out,
        outputs=order.options.outputs,
        seconds=time.perf_counter() - began,
        ood_score=settings.params.out_of_distribution,
    )
    write_batch_page(summary)
    _show_in_prefect(summary, out)
    versions = list(dict.fromkeys(number for number, _ in done))
    return SegmentRecord(
        ", ".join(versions),
        str(out),
        summary.images,
        summary.done,
        summary.skipped,
        summary.failed,
        summary.seconds,
        summary.missing_pixel_size,
        summary.ood_score.images,
        summary.ood_score.ood_images,
        summary.ood_score.median if summary.ood_score.images else None,
        summary.ood_score.is_ood,
    )


def _options(sizes: Sizes, keep: bool, settings: Settings) -> BatchOptions:
    inference = settings.params.inference
    return BatchOptions(
        outputs=inference.outputs,
        mpp=sizes,
        slide_megapixels=inference.slide_megapixels,
        skip_glass=inference.skip_glass,
        keep=keep,
    )


def _chunks(jobs: Sequence[ImageTask], size: int) -> list[Chunk]:
    starts = range(0, len(jobs), size)
    return [Chunk(start + 1, min(start + size, len(jobs)), tuple(jobs[start : start + size])) for start in starts]


def _version(model: str, lab: str | None, settings: Settings) -> ModelVersion:
    """The version to segment with; in production it is one that was found fit, though somebody just moved an alias."""
    registry = open_workspace(settings).registry
    if model != PRODUCTION:
        return registry.resolve(model)
    if any(drift.alias in (PRODUCTION, production_of(lab)) for drift in registry.pending_changes()):
        apply_pending_changes(settings)
    return registry.in_use(lab)


_READY: dict[tuple[int, str, str], Segmenter] = {}


def _ready(version: ModelVersion, settings: Settings) -> Segmenter:
    """A version made ready to segment; the one used last is kept from chunk to chunk."""
    key = (version.version, version.run_id, settings.model_dump_json())
    if key not in _READY:
        _READY.clear()
        _READY[key] = open_workspace(settings).segmenter(version)
    return _READY[key]


def _lab(folder: Path) -> str | None:
    """Whose images these are, where the folder says."""
    return read_lab_metadata(folder).lab if (folder / "lab.yaml").is_file() else None


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, found none. Check the path.")
    place = folder / "images" if (folder / "images").is_dir() else folder
    known = readable_suffixes()
    images = sorted(path for path in place.iterdir() if path.suffix.lower() in known and path.is_file())
    if not images:
        raise DataError(f"{place}: expected images or slides ({', '.join(known)}), found none. Check the path.")
    return images


def _sizes(folder: Path, images: Sequence[Path]) -> Mapping[str, float]:
    """Microns per pixel by file name, as images.csv says, or else for all images lab.yaml."""
    listed = read_image_table(folder)
    lab = read_lab_metadata(folder).mpp if (folder / "lab.yaml").is_file() else None
    sizes = {}
    for path in images:
        entry = listed.get(image_key(image_name(path.name)))
        size = lab if entry is None or entry.mpp is None else entry.mpp
        if size is not None:
            sizes[path.name] = size
    return sizes


def _show_in_prefect(summary: BatchSummary, out: Path) -> None:
    counts = {"images": summary.images, "done": summary.done, "skipped": summary.skipped, "failed": summary.failed}
    create_table_artifact(
        [counts | {"seconds": round(summary.seconds, 1), "drift": str(summary.ood_score)}],
        key="batch",
        description=f"Outputs in {out}",
    )
    for number, overlay in enumerate(sorted(out.glob("*.overlay.jpg"))[:3], 1):
        create_image_artifact(data_uri(overlay), key=f"overlay-{number}", description=overlay.name)


@cli_command
def command(
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a lab's folder with images/ and lab.yaml.")],
    model: Annotated[str, typer.Option(help="Version or alias.")] = PRODUCTION,
    out: Annotated[
        Path | None, typer.Option(help="Where the outputs go; a folder in microseg's home by default.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel of all images, where nothing else says.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave what an earlier version made of unchanged images.")
    ] = False,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Segment a folder's images and slides: label images, outlines (GeoJSON for QuPath), overlays, measurements.

    Images that were segmented before by the same version are skipped. Example: microseg segment slides/2026-11
    """
    result = segment(folder.absolute(), model, out.absolute() if out else None, mpp, keep, tuple(changes or ()))
    show_table(
        f"Segmented with version {result.version}",
        ("images", "done", "skipped", "failed", "seconds"),
        [(result.images, result.done, result.skipped, result.failed, round(result.seconds, 1))],
    )
    console.print(f"Outputs: {result.out}  (begin with index.html)")
    if result.missing_pixel_size:
        console.print(
            f"[yellow]{result.missing_pixel_size} images have no known pixel size and were taken to be at the model's: "
            "give --mpp, a line file,mpp in images.csv, or mpp in lab.yaml.[/yellow]"
        )
    if result.ood_score is not None:
        color = "yellow" if result.is_ood else "default"
        advice = " Adapt to their lab: microseg ingest, then microseg adapt." if result.is_ood else ""
        console.print(
            f"[{color}]{result.ood_images} of {result.compared} images are unlike any lab that the model knows "
            f"(median distance: {result.ood_score:.2f} of the limit).{advice}[/]"
        )
    finish(result, record)
    if result.failed:
        raise DataError(
            f"{result.failed} of {result.images} images could not be segmented: see {result.out}/failures.csv."
        )


if __name__ == "__main__":
    typer.run(command)
