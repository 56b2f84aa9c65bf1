"""Images → label images, outlines, overlays and measurements.

    python -m flows.segment slides/2026-11

A batch is processed in chunks: each chunk uses the version that is in production when it starts. Images that the same
version has segmented with the same settings are skipped; images that cannot be read are reported as failures.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment

from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.service.notifications import notify_people
from flows.telemetry import attempt, report
from flows.validate_promotion import apply_pending_changes
from flows.workspace import open_workspace
from microseg.api.segmenter import Segmenter, find_version
from microseg.config.settings import Settings, load_settings
from microseg.errors import DataError, SettingsError
from microseg.inference.batch import batch_lock, plan_batch, segment_images
from microseg.inference.batch_images import find_batch_images
from microseg.inference.image_pipeline import BatchOptions
from microseg.outputs.batch_summary import BatchSummary, ImageResult, ImageTask, finish_batch
from microseg.outputs.stains import StainOptions
from microseg.registry.version import PRODUCTION, ModelVersion, is_production, production_of
from microseg.report.batch_page import write_batch_page
from microseg.report.panels import data_uri

__all__ = ["command", "segment"]


@dataclass(frozen=True)
class BatchSpec:
    """What is equal for all images of a batch.

    Attributes:
        model: Version or alias.
        lab: Lab of the images; None if unknown.
        out: Folder of the outputs.
        options: Options of the batch.
        settings: Settings of this run.
    """

    model: str
    lab: str | None
    out: Path
    options: BatchOptions
    settings: Settings


@dataclass(frozen=True)
class Chunk:
    """Some images of a batch, from number ``first`` to number ``last``, counted from 1."""

    first: int
    last: int
    tasks: tuple[ImageTask, ...]


@task(retries=1, retry_delay_seconds=5, cache_policy=NO_CACHE, task_run_name="images {chunk.first} to {chunk.last}")
def segment_chunk(
    chunk: Chunk, batch: BatchSpec, progress: Callable[[], None] | None = None
) -> tuple[ImageResult, ...]:
    """Segment some images with the version that is in use when the task starts."""
    segmenter = _segmenter(_version(batch.model, batch.lab, batch.settings), batch.settings)
    return segment_images(
        segmenter.engine,
        chunk.tasks,
        batch.out,
        provenance=segmenter.provenance,
        options=batch.options,
        reference=segmenter.reference,
        progress=progress or (lambda: None),
    )


@flow(name="segment", flow_run_name="segment {source}")
def segment(
    source: Path,
    model: str = PRODUCTION,
    out: Path | None = None,
    mpp: float | None = None,
    keep_existing: bool = False,
    changes: tuple[str, ...] = (),
) -> BatchSummary:
    """Segment the images of a folder, or a single image, with a registered version.

    Args:
        source: A folder of images, a lab's folder with images/ and lab.yaml, or one image or slide.
        model: Version or alias; ``production`` is the lab's own production version where it has one.
        out: Folder of the outputs; a folder in microseg's home by default.
        mpp: Microns per pixel of images of which neither the file nor images.csv nor lab.yaml states another one.
        keep_existing: Skip unchanged images that an earlier version has segmented.
        changes: Parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    inference = settings.params.inference
    started = time.perf_counter()
    found = find_batch_images(source, mpp=mpp, labs=settings.home.labs)
    measured, notes = StainOptions.of(inference), found.notes
    if measured.names and found.reading.channels:
        measured, notes = StainOptions(), (*notes, "no stains are measured, but the intensities of the channels")
    options = BatchOptions(
        outputs=inference.outputs,
        mpp=found.mpp,
        slide_megapixels=inference.slide_megapixels,
        skip_glass=inference.skip_glass,
        keep_existing=keep_existing,
        reading=found.reading,
        stains=measured,
        regions=inference.regions,
    )
    out = out or settings.home.segmentations / (source.stem if source.is_file() else source.absolute().name)
    batch = BatchSpec(model, found.lab, out, options, settings)
    version = _version(model, batch.lab, settings)  # raises before any folder is created
    with batch_lock(found.images, out, waiting=report):
        chunks = _chunks(plan_batch(found.images, out), inference.chunk_size)
        total = sum(len(chunk.tasks) for chunk in chunks)
        with progress_bar(f"Segmenting with version {version.version}", total) as advance:
            if inference.workers > 1 or inference.dask_scheduler:
                results = _map_on_dask(chunks, batch, lambda chunk: [advance("") for _ in chunk.tasks])
            else:
                results = [segment_chunk(chunk, batch, lambda: advance("")) for chunk in chunks]
        summary = finish_batch(
            [result for part in results for result in part],
            out,
            outputs=options.outputs,
            seconds=time.perf_counter() - started,
            ood=settings.params.out_of_distribution,
            left_out=found.left_out,
            notes=notes,
        )
        write_batch_page(summary, slide_view=inference.slide_view)
    _show_in_prefect(summary)
    if summary.ood.exceeds_limits and deployment.id is not None:  # unattended
        what = f"{summary.ood.out_of_distribution} of {summary.ood.images} images of {source} are out of distribution"
        notify_people(
            settings,
            f"microseg: images of {source.name} are out of distribution",
            f"{what} of version {version.version}. Adapt the model to them: microseg onboard.",
            identity=f"{out.absolute()}#{version.run_id}#{summary.ood}",
        )
    return summary


def _chunks(tasks: Sequence[ImageTask], size: int) -> list[Chunk]:
    starts = range(0, len(tasks), size)
    return [Chunk(start + 1, min(start + size, len(tasks)), tuple(tasks[start : start + size])) for start in starts]


def _map_on_dask(
    chunks: Sequence[Chunk], batch: BatchSpec, advance: Callable[[Chunk], object]
) -> list[tuple[ImageResult, ...]]:
    """Segment chunks by several processes or machines, with Prefect's Dask task runner.

    A worker that dies is replaced, and another worker repeats its chunk.

    Args:
        chunks: Chunks of the batch.
        batch: ``inference.workers`` processes on this machine, or the scheduler at ``inference.dask_scheduler``.
        advance: Called with each finished chunk.

    Returns:
        The results, in order.

    Raises:
        SettingsError: The extra ``cluster`` is not installed.
    """
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise SettingsError(
            "Expected Prefect's Dask task runner for inference.workers > 1, it is not installed: pip install "
            "'microseg[cluster]', or set inference.workers to 1."
        ) from error
    inference = batch.settings.params.inference
    runner: Any = (
        DaskTaskRunner(address=inference.dask_scheduler)
        if inference.dask_scheduler
        else DaskTaskRunner(cluster_kwargs={"n_workers": inference.workers, "threads_per_worker": 1})
    )
    with runner:
        futures = [runner.submit(segment_chunk, {"chunk": chunk, "batch": batch}) for chunk in chunks]
        results = []
        for chunk, future in zip(chunks, futures, strict=True):
            results.append(future.result())
            advance(chunk)
    return results


def _version(model: str, lab: str | None, settings: Settings) -> ModelVersion:
    """The version to use. For production, alias changes made in MLflow are validated first."""
    registry = open_workspace(settings).registry
    if not is_production(model):
        return registry.versions.find(model)
    own = production_of(lab) if model == PRODUCTION else model
    if any(change.alias in (PRODUCTION, own) for change in registry.production.pending_changes()):
        apply_pending_changes(settings)
    return registry.production.active(lab) if model == PRODUCTION else find_version(registry, model)


_SEGMENTERS: dict[tuple[int, str, str], Segmenter] = {}


def _segmenter(version: ModelVersion, settings: Settings) -> Segmenter:
    """Segmenter of a version; the last one is cached from chunk to chunk."""
    key = (version.version, version.run_id, settings.model_dump_json())
    if key not in _SEGMENTERS:
        _SEGMENTERS.clear()
        _SEGMENTERS[key] = open_workspace(settings).segmenter(version)
    return _SEGMENTERS[key]


def _show_in_prefect(summary: BatchSummary) -> None:
    row = {name: getattr(summary, name) for name in ("images", "done", "skipped", "failed")}
    row |= {"seconds": round(summary.seconds, 1)} | {f"ood_{key}": str(it) for key, it in asdict(summary.ood).items()}
    attempt(create_table_artifact, [row], key="batch", description=f"Outputs in {summary.out}")
    for number, overlay in enumerate(sorted(summary.out.glob("*.overlay.jpg"))[:3], 1):
        attempt(create_image_artifact, data_uri(overlay), key=f"overlay-{number}", description=overlay.name)


@cli_command()
def command(
    source: Annotated[
        Path, typer.Argument(help="A folder of images, a lab's folder with images/ and lab.yaml, or one image.")
    ],
    model: Annotated[str, typer.Option(help="Version or alias.")] = PRODUCTION,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the outputs; a folder in microseg's home by default.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="Microns per pixel of images that state none; it is an error where they state another one."),
    ] = None,
    keep_existing: Annotated[
        bool, typer.Option("--keep-existing", help="Skip unchanged images that an earlier version has segmented.")
    ] = False,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Segment images and slides: label images, outlines (GeoJSON for QuPath), overlays, measurements.

    Images that the same version has segmented are skipped.

    Example: microseg segment slides/2026-11
    """
    result = segment(
        source.absolute(), model, out.absolute() if out else None, mpp, keep_existing, tuple(changes or ())
    )
    show_table(
        f"Segmented with version {result.version or '–'}",
        ("images", "done", "skipped", "failed", "seconds"),
        [(result.images, result.done, result.skipped, result.failed, round(result.seconds, 1))],
    )
    if result.left_out:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(result.left_out.items())[:10])
        more = f" … all are listed in {result.record}" if len(result.left_out) > 10 else ""
        console.print(f"Left out: {len(result.left_out)} ({named}{more}).", style="yellow", markup=False)
    for note in result.notes:
        console.print(f"{note}.", style="yellow", markup=False)
    if len(result.models) > 1:
        console.print(
            f"[yellow]Segmented with {len(result.models)} versions ({result.version}): the column model "
            "of the tables names that of each row. Do not compare measurements of different versions.[/yellow]"
        )
    if result.missing_pixel_size:
        console.print(
            f"[yellow]{result.missing_pixel_size} images have no known pixel size and were assumed to have that of the "
            "model: give --mpp, a line file,mpp in images.csv, or mpp in lab.yaml.[/yellow]"
        )
    if result.ood.images:
        color = "yellow" if result.ood.exceeds_limits else "default"
        advice = (
            " Adapt the model to their lab: microseg ingest, then microseg adapt." if result.ood.exceeds_limits else ""
        )
        console.print(
            f"[{color}]{result.ood.out_of_distribution} of {result.ood.images} images are out of distribution "
            f"(median score {result.ood.median_score:.2f}; limit of an image: 1).{advice}[/]"
        )
    console.print(f"Next: open {result.out / 'index.html'} in a browser", soft_wrap=True, markup=False)
    finish(result, record)
    if result.failed:
        raise DataError(f"{result.failed} of {result.images} images could not be segmented: see {result.failures}.")


if __name__ == "__main__":
    typer.run(command)
