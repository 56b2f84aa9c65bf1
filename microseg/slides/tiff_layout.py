"""What the tags of a TIFF file mean: the one interpretation, for images, slides and masks.

What is not understood is refused with what was found: a file of several images of which none is the one that is meant
(planes, channels, times, positions, a page per class), samples whose meaning is not stated, an unusual color space.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from microseg.errors import ImageReadError
from microseg.slides.channels import RGB_NAMES
from microseg.slides.color import BIT_DEPTHS, Alpha
from microseg.slides.ome import OmeImage, is_ome
from microseg.slides.tiff_pages import MAX_PAGES, STACK, other_pages, page_at, reduced_levels
from microseg.slides.tiff_planes import (
    check_alike,
    check_shaped,
    imagej_names,
    imagej_pages,
    ome_image,
    ome_names,
    ome_pages,
    page_facts,
)
from microseg.slides.tiff_samples import (
    Color,
    channel_samples,
    color_of,
    color_samples,
    read_orientation,
    read_palette,
    sample_type,
)

__all__ = ["TiffLayout", "is_tiff", "main_page", "read_layout"]

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_KINDS = {"stk": "MetaMorph", "lsm": "Zeiss LSM", "fluoview": "FluoView", "mdgel": "MD GEL", "eer": "EER"}

logging.getLogger("tifffile").addFilter(lambda record: record.levelno >= logging.CRITICAL)  # damage is reported here


@dataclass(frozen=True)
class TiffLayout:
    """How the pixels of a TIFF file are stored.

    Attributes:
        levels: Pages of each resolution, the finest first: one page, or one of each channel.
        color: What the color samples mean.
        samples: Number of color samples of a pixel.
        alpha: How the sample after the color samples is transparency; None where it is not, or there is none.
        bits: Bits of a sample.
        kind: ``u``, ``i`` or ``f``: unsigned or signed whole numbers, or floats.
        depth: Bits that hold the values, where the file states it: fewer than ``bits``, or ``bits`` unless they are 16.
        orientation: TIFF orientation, 1 to 8.
        palette: Colors of the indices.
        ome: The OME-XML's image; None where there is none.
        names: Name of each sample, or an empty one, where they are channels.

    Shape:
        palette (2^bits, 3)
    """

    levels: tuple[tuple[tifffile.TiffPage, ...], ...]
    color: Color
    samples: int
    alpha: Alpha | None
    bits: int
    kind: str
    depth: int | None
    orientation: int
    palette: npt.NDArray[np.uint8] | None
    ome: OmeImage | None
    names: tuple[str, ...] = ()

    @property
    def page(self) -> tifffile.TiffPage:
        """The first page of the finest level."""
        return self.levels[0][0]


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) in _STARTS


def main_page(path: Path, tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPage, OmeImage | None]:
    """The first page of the image that is meant, whatever its samples are, and what the OME-XML states of it.

    Raises:
        ImageReadError: There is none, or several images are in the OME-XML.
    """
    first = page_at(tiff.pages, 0)
    if first is None:
        raise ImageReadError(f"{path}: expected a TIFF with an image, got none in it. Export it again.")
    description = str(first.description or "")
    if not is_ome(description):
        return first, None
    image, _ = ome_image(path, description, first)
    return page_at(tiff.pages, min(image.planes, key=lambda plane: plane.c).page) or first, image


def read_layout(path: Path, tiff: tifffile.TiffFile, *, every_page: bool = False, channels: bool = False) -> TiffLayout:
    """Interpret the tags of a TIFF file.

    Args:
        path: The file, for messages.
        tiff: The open file.
        every_page: All pages are meant, as samples: a stack of gray pages of one size, whatever it describes.
        channels: Its samples are channels, whatever they show. Pages of one size are channels, too, unless the file
            describes them as something else.

    Raises:
        ImageReadError: The file holds something that is not understood, or several images. Exceptions of tifffile on
            damaged files are not caught.
    """
    first = page_at(tiff.pages, 0)
    if first is None:
        raise ImageReadError(f"{path}: expected a TIFF with an image, got none in it. Export it again.")
    for kind, name in _KINDS.items():
        if getattr(first, f"is_{kind}"):
            raise ImageReadError(f"{path}: expected an image as TIFF, got a {name} file. Export it as TIFF or PNG.")
    description = str(first.description or "")
    ome = ome_image(path, description, first) if is_ome(description) and not every_page else None
    rest: Iterator[tifffile.TiffPage]
    if every_page:
        image, pages, rest = None, (first, *other_pages(path, tiff, {0})), iter(())
        if len(pages) == MAX_PAGES:
            raise ImageReadError(f"{path}: expected fewer than {MAX_PAGES} pages, got as many. {STACK}")
        check_alike(path, pages)
    elif ome is not None:
        image, others = ome
        known = {plane.page for plane in image.planes} | others
        pages, rest = ome_pages(path, tiff, image, channels=channels), other_pages(path, tiff, known)
    elif description.startswith("ImageJ="):
        image, (pages, rest) = None, imagej_pages(path, tiff, description, channels=channels)
    elif channels:
        image, pages = None, (first, *_alike_pages(tiff, first))
        rest = other_pages(path, tiff, set(range(len(pages))))
        if len(pages) == 1:
            check_shaped(path, description, first)
    else:
        image, pages, rest = None, (first,), other_pages(path, tiff, {0})
        check_shaped(path, description, first)
        if description.startswith("Aperio "):  # the other pages are levels, label and macro image, in Aperio's order
            rest = iter(())
    page = pages[0]
    levels = [pages, *reduced_levels(path, pages, rest)]
    names: tuple[str, ...] = ()
    color: Color
    if channels:
        color, samples, alpha = "channels", channel_samples(path, pages), None
        names = _channel_names(pages, samples, image, description)
    else:
        color, samples, alpha = color_samples(path, page, len(pages))
    bits, kind = sample_type(path, page)
    if channels and bits < 8:
        raise ImageReadError(f"{path}: expected channels of at least 8 bits, got {bits}. Export it again.")
    orientation = read_orientation(path, page)
    for level in levels[1:]:
        if level[0].tags.valueof(274, orientation) != orientation:
            raise ImageReadError(
                f"{path}: expected levels of one orientation, got {orientation} and {level[0].tags.valueof(274)}. "
                "Export it again."
            )
    palette = None
    if color == "palette":
        palette = read_palette(path, page, bits)
    depth = bits if kind == "u" and bits != 16 else None
    if depth is None and image is not None and image.significant_bits in BIT_DEPTHS[:-1] and bits == 16:
        depth = image.significant_bits
    return TiffLayout(tuple(levels), color, samples, alpha, bits, kind, depth, orientation, palette, image, names)


def _alike_pages(tiff: tifffile.TiffFile, first: tifffile.TiffPage) -> Iterator[tifffile.TiffPage]:
    """The gray pages after the first that are like it; of an RGB image, there are none."""
    for number in range(1, MAX_PAGES):
        page = page_at(tiff.pages, number) if first.samplesperpixel == 1 else None
        if page is None or page_facts(page) != page_facts(first):
            return
        yield page


def _channel_names(
    pages: tuple[tifffile.TiffPage, ...], samples: int, image: OmeImage | None, description: str
) -> tuple[str, ...]:
    """Names of the channels; empty where the file states none."""
    if image is not None:
        return ome_names(image, samples)
    if color_of(pages[0]) == "rgb":
        return (*RGB_NAMES, *[""] * (samples - 3))
    return imagej_names(pages[0], samples) if description.startswith("ImageJ=") else ("",) * samples
