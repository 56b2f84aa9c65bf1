"""Thumbnails of a batch: each image, and the same with its outlines."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from microseg.errors import MicrosegError
from microseg.files import atomic_write
from microseg.outputs.record import Record
from microseg.slides.channels import ReadOptions
from microseg.slides.limited import open_slide

__all__ = ["Thumbnails", "write_thumbnails"]

_SIDE = 320  # pixels of the longer side
_THREADS = min(8, os.cpu_count() or 1)


class Thumbnails(NamedTuple):
    """Files beside the page's data; None where there is none.

    Attributes:
        image: The image alone.
        outlines: The image with its outlines, from the output ``overlay``.
    """

    image: str | None
    outlines: str | None


def write_thumbnails(records: Sequence[Record], outputs: Path, folder: Path) -> list[Thumbnails]:
    """Write the thumbnails of all images. Those that are newer than the record are kept, those of no record removed.

    Args:
        records: Records of the images.
        outputs: Folder of the outputs.
        folder: Folder of the thumbnails; created if missing.

    Returns:
        The thumbnails of each record. An image that is no longer there, or cannot be read, has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda record: _thumbnails(record, outputs, folder), records))
    kept = {name for pair in found for name in pair if name}
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()
    return found


def _thumbnails(record: Record, outputs: Path, folder: Path) -> Thumbnails:
    image, outlines = f"{record.name}.image.jpg", f"{record.name}.outlines.jpg"
    overlay = outputs / record.outputs["overlay"] if "overlay" in record.outputs else None
    time = _changed(outputs / f"{record.name}.json")
    drawn = overlay is not None and (_changed(folder / outlines) > time or _reduce_overlay(overlay, folder / outlines))
    shown = _changed(folder / image) > time or _reduce_image(record, folder / image)
    return Thumbnails(image if shown else None, outlines if drawn else None)


def _changed(file: Path) -> float:
    """Time of the last change; 0 for a missing file."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _reduce_overlay(overlay: Path, target: Path) -> bool:
    with suppress(OSError, Image.DecompressionBombError), Image.open(overlay) as picture:
        picture.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # decodes a JPEG at a smaller size
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.HAMMING)
        _save(picture, target)
        return True
    return False


def _reduce_image(record: Record, target: Path) -> bool:
    reading = ReadOptions.from_record(record.provenance.inference)
    with suppress(OSError, MicrosegError, MemoryError), open_slide(record.source, reading) as slide:
        _save(Image.fromarray(slide.thumbnail(_SIDE)), target)
        return True
    return False


def _save(picture: Image.Image, target: Path) -> None:
    with atomic_write(target) as part:
        picture.save(part, "jpeg", quality=80)
