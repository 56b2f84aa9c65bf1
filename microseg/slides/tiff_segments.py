"""The tiles and strips of a TIFF page: whether all of them are in the file, and which can be read row by row."""

import math
from pathlib import Path

import tifffile

from microseg.errors import ImageReadError

__all__ = ["check_complete", "is_plain"]

_MAX_SEGMENT = 178_956_970  # pixels of a tile or strip, which is decoded as a whole


def check_complete(path: Path, page: tifffile.TiffPage, file_size: int) -> None:
    """Refuse a page whose tiles or strips are missing, too large, or beyond the end of the file."""
    if page.is_tiled:
        w, h = page.tilewidth, page.tilelength
    else:
        w, h = page.imagewidth, max(1, page.rowsperstrip)
    if not min(w, h, page.imagewidth, page.imagelength, page.samplesperpixel):
        raise ImageReadError(f"{path}: expected pixels, got a page of no size. Export or copy it again.")
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    number = math.ceil(page.imagewidth / w) * math.ceil(page.imagelength / h) * planes
    starts, counts = page.dataoffsets, page.databytecounts
    if len(starts) < number or len(counts) < number:
        raise ImageReadError(
            f"{path}: expected {number} tiles or strips, got {min(len(starts), len(counts))}: it is damaged or "
            "truncated. Export or copy it again."
        )
    if missing := sum(not count or not start for start, count in zip(starts, counts, strict=False)):
        raise ImageReadError(
            f"{path}: expected pixels in all {number} tiles or strips, got none in {missing}. Export it again."
        )
    end = max(start + count for start, count in zip(starts[:number], counts, strict=False))
    if is_plain(page):
        assert page.dtype is not None
        row = page.imagewidth * (page.samplesperpixel // planes) * page.dtype.itemsize
        down = math.ceil(page.imagelength / h)
        rows = [min(h, page.imagelength - (strip % down) * h) for strip in range(number)]
        end = max(end, *(start + row * each for start, each in zip(starts, rows, strict=False)))
    elif w * h > _MAX_SEGMENT:
        raise ImageReadError(
            f"{path}: expected tiles, or strips of at most {_MAX_SEGMENT:,} pixels, got one of {w * h:,}. "
            "Export it in tiles."
        )
    if end > file_size:
        raise ImageReadError(
            f"{path}: expected at least {end:,} bytes, got {file_size:,}: it is truncated. Copy it again."
        )


def is_plain(page: tifffile.TiffPage) -> bool:
    """Whether the rows of a page's strips can be read alone."""
    return (
        not page.is_tiled
        and int(page.compression) == 1
        and int(page.predictor) == 1
        and int(page.fillorder) == 1
        and page.bitspersample in (8, 16, 32, 64)
    )
