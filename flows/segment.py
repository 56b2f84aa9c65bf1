"""Images → masks, outlines, overlays, measurements (segmentation mode).

    python -m flows.segment slides/2026-11

The production model segments a folder's images. What was segmented before by the same version, with the same
settings, is skipped; an image that cannot be read is recorded and passed over.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_table_artifact

from flows.command import RecordOption, SetOption, finish, microseg_command
from flows.console import console, progress_bar, show_table
from flows.models import fetch_segmenter, open_registry
from flows.records import SegmentRecord
from flows.settings import Settings, load_settings
from microseg.data.image_list import read_image_list
from microseg.data.images import IMAGE_SUFFIXES
from microseg.data.lab import read_lab_card
from microseg.errors import DataError
from microseg.inference import BatchSummary, segment_batch
from microseg.registry import PRODUCTION, ModelVersion
from microseg.report import data_uri

__all__ = ["command", "segment"]


@task
def segment_images(
    version: ModelVersion,
    images: list[Path],
    out: Path,
    sizes: float | Mapping[str, float] | None,
    settings: Settings,
) -> BatchSummary:
    """Segment the images into a folder."""
    segmenter = fetch_segmenter(version, settings)
    with progress_bar(f"Segmenting with version {version.version}", len(images)) as advance:
        return segment_batch(
            segmenter.engine,
            images,
            out,
            provenance=segmenter.provenance,
            outputs=settings.params.inference.outputs,
            mpp=sizes,
            progress=lambda _done, _total: advance(""),
        )


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
    summary = segment_images(version, images, out, _sizes(folder) if mpp is None else mpp, settings)
    _show_in_prefect(summary, out)
    return SegmentRecord(
        str(version.version), str(out), summary.images, summary.done, summary.skipped, summary.failed, summary.seconds
    )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, found none. Check the path.")
    place = folder / "images" if (folder / "images").is_dir() else folder
    images = sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{place}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none. Check the path.")
    return images


def _sizes(folder: Path) -> float | Mapping[str, float] | None:
    """Microns per pixel as the lab states them: for each file in images.csv, else for all in lab.yaml."""
    listed = {entry.file: entry.mpp for entry in read_image_list(folder).values() if entry.mpp is not None}
    if listed:
        return listed
    return read_lab_card(folder).mpp if (folder / "lab.yaml").is_file() else None


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
    """Segment a folder's images: label images, outlines (GeoJSON for QuPath), overlays, measurements, provenance.

    Images that were segmented before by the same version are skipped. Example: microseg segment slides/2026-11
    """
    result = segment(folder.absolute(), model, out.absolute() if out else None, mpp, tuple(changes or ()))
    show_table(
        f"Segmented with version {result.version}",
        ("images", "done", "skipped", "failed", "seconds"),
        [(result.images, result.done, result.skipped, result.failed, round(result.seconds, 1))],
    )
    console.print(f"Outputs: {result.out}")
    finish(result, record)
    if result.failed:
        raise DataError(
            f"{result.failed} of {result.images} images could not be segmented: see {result.out}/failures.csv."
        )


if __name__ == "__main__":
    typer.run(command)
