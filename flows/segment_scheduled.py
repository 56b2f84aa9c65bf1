"""Scheduled batch segmentation of a folder."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.segment import segment
from flows.telemetry import step
from microseg.config.settings import load_settings
from microseg.errors import DataError, MicrosegError
from microseg.slides.folder import list_images
from microseg.slides.readers import readable_suffixes

__all__ = ["segment_scheduled"]


@flow(name="segment-scheduled")
def segment_scheduled(folder: Path | None = None, changes: tuple[str, ...] = ()) -> State[Any]:
    """Segment new and changed images of a folder with the production model.

    The folder itself is a batch, and so is each folder in it: of images and slides, or a lab's folder with images/ and
    lab.yaml, which is segmented with the lab's own production version where it has one. Unchanged images that an
    earlier version has segmented are skipped, unless ``schedule.resegment`` is true.

    Args:
        folder: The folder; ``schedule.folder`` of params.yaml by default.
        changes: Parameters that replace those of params.yaml, ``section.name=value``.

    Returns:
        Completed, with the counts of each batch; Failed if one could not be segmented, after all others.

    Raises:
        DataError: There are files, but no images.
    """
    settings = load_settings(changes)
    folder = folder or settings.home.root / settings.params.schedule.folder
    batches = [
        place for place in (folder, *sorted(folder.glob("*/"))) if place.name != "images" and _holds_images(place)
    ]
    if not batches:
        if any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")):
            kinds = ", ".join(readable_suffixes())
            raise DataError(f"{folder}: expected images or slides ({kinds}), found other files. Remove them.")
        return Completed(message=f"Nothing to do: {folder} holds no images.")
    messages, failed = [], 0
    for place in batches:
        out = settings.home.segmentations / folder.name
        out = out if place == folder else out / place.name
        try:
            with step(f"Segment {place}"):
                batch = segment(place, out=out, keep_existing=not settings.params.schedule.resegment, changes=changes)
        except Exception as error:  # of this folder; the others are segmented
            failed += 1
            text = str(error) if isinstance(error, MicrosegError) else f"{type(error).__name__}: {error}"
            messages.append(f"{place.name} was not segmented: {text}")
            continue
        messages.append(
            f"{batch.done} segmented, {batch.skipped} skipped, {batch.failed} failed; outputs in {batch.out}."
        )
        if batch.ood.exceeds_limits:
            messages.append(
                f"Out of distribution: {batch.ood.out_of_distribution} of {batch.ood.images} images; "
                "adapt the model to them."
            )
    if failed:
        return Failed(message=f"{failed} of {len(batches)} folders failed. {' '.join(messages)}")
    return Completed(message=" ".join(messages))


def _holds_images(folder: Path) -> bool:
    """Whether a folder is a batch: it has images, or images/ with some; or it cannot be read, which is reported."""
    try:
        return any(list_images(place).images for place in (folder, folder / "images") if place.is_dir())
    except OSError:
        return True
