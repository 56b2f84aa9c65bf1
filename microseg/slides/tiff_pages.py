"""Which pages and sub-images of a TIFF file are resolutions of one image; others are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from microseg.errors import ImageReadError
from microseg.slides.tiff_samples import color_of

__all__ = ["MAX_PAGES", "STACK", "other_pages", "page_at", "reduced_levels"]

MAX_PAGES = 64  # pages or sub-images; files of more are stacks
STACK = (
    "Export the one image that is meant as a file of its own; a mask has one page with 0, 1, 2 … for its classes, or "
    "with `masks: class_pages` in lab.yaml a page for each."
)
"""What to do with a file of several images."""


def page_at(pages: Any, number: int) -> tifffile.TiffPage | None:
    """A page; None where there are fewer."""
    try:
        found = pages[number]
    except IndexError:
        return None
    return found if isinstance(found, tifffile.TiffPage) else found.aspage()


def other_pages(path: Path, tiff: tifffile.TiffFile, used: set[int]) -> Iterator[tifffile.TiffPage]:
    """The pages that are not used; more pages than a file of one image has are refused."""
    for number in range(MAX_PAGES):
        if number not in used:
            if (page := page_at(tiff.pages, number)) is None:
                return
            yield page
    if MAX_PAGES not in used and page_at(tiff.pages, MAX_PAGES) is not None:
        raise ImageReadError(f"{path}: expected at most {MAX_PAGES} pages, got more. {STACK}")


def reduced_levels(
    path: Path, pages: tuple[tifffile.TiffPage, ...], rest: Iterator[tifffile.TiffPage]
) -> list[tuple[tifffile.TiffPage, ...]]:
    """The reduced resolutions among further pages and sub-images; other images are refused."""
    levels: list[tuple[tifffile.TiffPage, ...]] = []
    sizes = {(pages[0].imagewidth, pages[0].imagelength)}
    chained = list(rest)
    sub_images = [list(_sub_images(path, page)) for page in pages]
    if len({len(each) for each in sub_images}) > 1:
        raise ImageReadError(f"{path}: expected the same sub-images for each channel, got others. {STACK}")
    for further, source in ((list(zip(*sub_images, strict=True)), "sub-image"), ([(p,) for p in chained], "page")):
        for level in further:
            if _is_level(path, pages[0], level[0], source) and len(level) == len(pages):
                size = (level[0].imagewidth, level[0].imagelength)
                if size not in sizes:  # thumbnails may repeat a level
                    sizes.add(size)
                    levels.append(tuple(level))
    return sorted(levels, key=lambda level: -level[0].imagewidth)


def _sub_images(path: Path, page: tifffile.TiffPage) -> Iterator[tifffile.TiffPage]:
    offsets = page.subifds or ()
    if len(offsets) > MAX_PAGES:
        raise ImageReadError(f"{path}: expected at most {MAX_PAGES} sub-images, got {len(offsets)}. {STACK}")
    for number in range(len(offsets)):
        found = page_at(page.pages, number)
        if found is not None:
            yield found


def _is_level(path: Path, main: tifffile.TiffPage, page: tifffile.TiffPage, source: str) -> bool:
    """Whether a further page is a reduced resolution of the main one; False: an image that states to be beside it."""
    width, height, w, h = main.imagewidth, main.imagelength, page.imagewidth, page.imagelength
    found = f"a {source} of {w} x {h} beside one of {width} x {height}"
    if not min(width, height, w, h):
        raise ImageReadError(f"{path}: expected pages with pixels, got {found}. Export it again.")
    reduced = bool(page.subfiletype & 1)
    if page.subfiletype & 4 or page.photometric == tifffile.PHOTOMETRIC.MASK:
        raise ImageReadError(f"{path}: expected an image, got {found} that is its transparency mask. Export it again.")
    if w > width or h > height:
        raise ImageReadError(
            f"{path}: expected the main image first, got {found}. Export the main image as a file of its own."
        )
    if main.subfiletype & 1 and not reduced:
        raise ImageReadError(f"{path}: expected the main image first, got a reduced one first. {STACK}")
    same_shape = abs(w * height / width - h) <= max(1.5, 0.02 * h)  # sizes of levels are rounded
    same_samples = (page.samplesperpixel, page.bitspersample, page.sampleformat) == (
        main.samplesperpixel,
        main.bitspersample,
        main.sampleformat,
    ) and color_of(page) == color_of(main)
    ratio = np.log2(width / w)
    power = ratio > 0.5 and abs(ratio - round(ratio)) < 0.03
    if same_shape and same_samples and (w, h) != (width, height) and (reduced or power or source == "sub-image"):
        return True
    if reduced:  # a thumbnail, label or macro image, which states to be one
        return False
    raise ImageReadError(f"{path}: expected one image, got {found}: several images in one file. {STACK}")
