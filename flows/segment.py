"""Images → masks, outlines, overlays, measurements (segmentation mode).

    python -m flows.segment slides/2026-11

The production model segments a folder's images. What was segmented before by the same version, with the same
settings, is skipped; an image that cannot be read is recorded and passed over.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.command import RecordOption, SetOption, finish, microseg_command
from flows.console import console, progress_bar, show_table
from flows.models import fetch_segmenter, open_registry
from flows.records import SegmentRecord
from flows.settings import load_settings
from microseg.data.checks import image_key, image_name
from microseg.data.image_list import read_image_list
from microseg.data.images import IMAGE_SUFFIXES
from microseg.data.lab import read_lab_card
from microseg.data.slides import SLIDE_SUFFIXES
from microseg.errors import DataError
from microseg.inference import Batch, BatchSummary, Job
from microseg.registry import PRODUCTION
from microseg.report import data_uri, write_batch_page

__all__ = ["command", "segment"]


@task(cache_policy=NO_CACHE)
def segment_chunk(batch: Batch, jobs: Sequence[Job], advance: Callable[[str], None]) -> None:
    """Segment some of a batch's images."""
    batch.segment(jobs, lambda _done, _total: advance(""))


@task(cache_policy=NO_CACHE)
def finish_batch(batch: Batch) -> BatchSummary:
    """Write the tables of a batch and its page."""
    summary = batch.finish()
    write_batch_page(summary)
    return summary


@flow(name="segment", flow_run_name="segment {folder}")
def segment(
    folder: Path,
    model: str = PRODUCTION,
    out: Path | None = None,
    mpp: float | None = None,
    changes: tuple[str, ...] = (),
) -> SegmentRecord:
    """Segment all images of a folder with a registered version.

    Args:
        folder: of images, or a lab's folder with images/ and lab.yaml.
        model: version or alias.
        out: where the outputs go; a folder in microseg's home by default.
        mpp: microns per pixel of all images; by default what images.csv, lab.yaml or the files say.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    images = _images(folder)
    version = open_registry(settings).resolve(model)
    out = out or settings.home.segmentations / folder.absolute().name
    segmenter, inference = fetch_segmenter(version, settings), settings.params.inference
    batch = Batch(
        segmenter.engine,
        images,
        out,
        provenance=segmenter.provenance,
        outputs=inference.outputs,
        mpp=_sizes(folder, images) if mpp is None else mpp,
        slide_megapixels=inference.slide_megapixels,
        skip_glass=inference.skip_glass,
    )
    with progress_bar(f"Segmenting with version {version.version}", len(images)) as advance:
        for jobs in batch.chunks(inference.chunk):
            segment_chunk(batch, jobs, advance)
    summary = finish_batch(batch)
    _show_in_prefect(summary, out)
    return SegmentRecord(
        str(version.version),
        str(out),
        summary.images,
        summary.done,
        summary.skipped,
        summary.failed,
        summary.seconds,
        summary.unsized,
    )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, found none. Check the path.")
    place = folder / "images" if (folder / "images").is_dir() else folder
    known = (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES)
    images = sorted(path for path in place.iterdir() if path.suffix.lower() in known and path.is_file())
    if not images:
        raise DataError(f"{place}: expected images or slides ({', '.join(known)}), found none. Check the path.")
    return images


def _sizes(folder: Path, images: Sequence[Path]) -> Mapping[str, float]:
    """Microns per pixel by file name, as images.csv says, or else for all images lab.yaml."""
    listed = read_image_list(folder)
    lab = read_lab_card(folder).mpp if (folder / "lab.yaml").is_file() else None
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
        [counts | {"seconds": round(summary.seconds, 1)}], key="batch", description=f"Outputs in {out}"
    )
    for number, overlay in enumerate(sorted(out.glob("*.overlay.jpg"))[:3], 1):
        create_image_artifact(data_uri(overlay), key=f"overlay-{number}", description=overlay.name)


@microseg_command
def command(
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a lab's folder with images/ and lab.yaml.")],
    model: Annotated[str, typer.Option(help="Version or alias.")] = PRODUCTION,
    out: Annotated[
        Path | None, typer.Option(help="Where the outputs go; a folder in microseg's home by default.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel of all images, where nothing else says.")] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Segment a folder's images and slides: label images, outlines (GeoJSON for QuPath), overlays, measurements.

    Images that were segmented before by the same version are skipped. Example: microseg segment slides/2026-11
    """
    result = segment(folder.absolute(), model, out.absolute() if out else None, mpp, tuple(changes or ()))
    show_table(
        f"Segmented with version {result.version}",
        ("images", "done", "skipped", "failed", "seconds"),
        [(result.images, result.done, result.skipped, result.failed, round(result.seconds, 1))],
    )
    console.print(f"Outputs: {result.out}  (begin with index.html)")
    if result.unsized:
        console.print(
            f"[yellow]{result.unsized} images have no known pixel size and were taken to be at the model's: "
            "give --mpp, a line file,mpp in images.csv, or mpp in lab.yaml.[/yellow]"
        )
    finish(result, record)
    if result.failed:
        raise DataError(
            f"{result.failed} of {result.images} images could not be segmented: see {result.out}/failures.csv."
        )


if __name__ == "__main__":
    typer.run(command)
