"""What the tags of a TIFF file mean: the one interpretation, for images, slides and masks.

What is not understood is refused with what was found: a file of several images of which none is the one that is meant
(planes, channels, times, positions, a page per class), samples whose meaning is not stated, an unusual color space.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from microseg.errors import ImageReadError
from microseg.parsing import parse_json
from microseg.slides.color import BIT_DEPTHS, Alpha
from microseg.slides.ome import OmeChannel, OmeFile, OmeImage, is_ome, parse_ome

__all__ = ["TiffLayout", "is_tiff", "read_layout"]

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_PAGES = 64  # pages or sub-images; files of more are stacks
_PHOTOMETRIC = tifffile.PHOTOMETRIC
_JPEG, _OLD_JPEG = (7, 34892, 33007), 6
_FLUORESCENCE = "Export a brightfield image as RGB; fluorescence channels are not supported."
_STACK = (
    "Export the one image that is meant as a file of its own; a mask has one page with 0, 1, 2 … for its classes, or "
    "with `masks: class_pages` in lab.yaml a page for each."
)
_SIDE_IMAGES = ("label", "macro", "thumbnail", "overview", "barcode")
_RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
_RGB_NAMES = (("r", "red"), ("g", "green"), ("b", "blue"))
_KINDS = {"stk": "MetaMorph", "lsm": "Zeiss LSM", "fluoview": "FluoView", "mdgel": "MD GEL", "eer": "EER"}

Color = Literal["gray", "white is zero", "rgb", "palette", "cmyk"]
_COLORS: dict[int, tuple[Color, int]] = {
    _PHOTOMETRIC.MINISWHITE: ("white is zero", 1),
    _PHOTOMETRIC.MINISBLACK: ("gray", 1),
    _PHOTOMETRIC.RGB: ("rgb", 3),
    _PHOTOMETRIC.PALETTE: ("palette", 1),
    _PHOTOMETRIC.SEPARATED: ("cmyk", 4),
    _PHOTOMETRIC.YCBCR: ("rgb", 3),  # the JPEG decoder converts it
}

logging.getLogger("tifffile").addFilter(lambda record: record.levelno >= logging.CRITICAL)  # damage is reported here


@dataclass(frozen=True)
class TiffLayout:
    """How the pixels of a TIFF file are stored.

    Attributes:
        levels: Pages of each resolution, the finest first: one page, or three that are red, green and blue.
        color: What the color samples mean.
        samples: Number of color samples of a pixel.
        alpha: How the sample after the color samples is transparency; None where it is not, or there is none.
        bits: Bits of a sample.
        kind: ``u``, ``i`` or ``f``: unsigned or signed whole numbers, or floats.
        depth: Bits that hold the values, where the file states it: fewer than ``bits``, or ``bits`` unless they are 16.
        orientation: TIFF orientation, 1 to 8.
        palette: Colors of the indices.
        ome: The OME-XML's image; None where there is none.

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

    @property
    def page(self) -> tifffile.TiffPage:
        """The first page of the finest level."""
        return self.levels[0][0]


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) in _STARTS


def read_layout(path: Path, tiff: tifffile.TiffFile, *, every_page: bool = False) -> TiffLayout:
    """Interpret the tags of a TIFF file.

    Args:
        path: The file, for messages.
        tiff: The open file.
        every_page: All pages are meant, as samples: a stack of gray pages of one size, whatever it describes.

    Raises:
        ImageReadError: The file holds something that is not understood, or several images. Exceptions of tifffile on
            damaged files are not caught.
    """
    first = _page(tiff.pages, 0)
    if first is None:
        raise ImageReadError(f"{path}: expected a TIFF with an image, got none in it. Export it again.")
    for kind, name in _KINDS.items():
        if getattr(first, f"is_{kind}"):
            raise ImageReadError(f"{path}: expected an image as TIFF, got a {name} file. Export it as TIFF or PNG.")
    description = str(first.description or "")
    ome = _ome_image(path, description, first) if is_ome(description) and not every_page else None
    rest: Iterator[tifffile.TiffPage]
    if every_page:
        image, pages, rest = None, (first, *_other_pages(path, tiff, {0})), iter(())
        if len(pages) == _MAX_PAGES:
            raise ImageReadError(f"{path}: expected fewer than {_MAX_PAGES} pages, got as many. {_STACK}")
        _check_same(path, pages)
    elif ome is not None:
        image, others = ome
        known = {plane.page for plane in image.planes} | others
        pages, rest = _ome_pages(path, tiff, image), _other_pages(path, tiff, known)
    elif description.startswith("ImageJ="):
        image, (pages, rest) = None, _imagej_pages(path, tiff, description)
    else:
        image, pages, rest = None, (first,), _other_pages(path, tiff, {0})
        _check_shaped(path, description, first)
        if description.startswith("Aperio "):  # the other pages are levels, label and macro image, in Aperio's order
            rest = iter(())
    page = pages[0]
    levels = [pages, *_reduced(path, pages, rest)]
    color, samples, alpha = _check_samples(path, page, len(pages))
    bits, kind = _check_type(path, page)
    orientation = _orientation(path, page)
    for level in levels[1:]:
        if level[0].tags.valueof(274, orientation) != orientation:
            raise ImageReadError(
                f"{path}: expected levels of one orientation, got {orientation} and {level[0].tags.valueof(274)}. "
                "Export it again."
            )
    palette = None
    if color == "palette":
        palette = _palette(path, page, bits)
    depth = bits if kind == "u" and bits != 16 else None
    if depth is None and image is not None and image.significant_bits in BIT_DEPTHS[:-1] and bits == 16:
        depth = image.significant_bits
    return TiffLayout(tuple(levels), color, samples, alpha, bits, kind, depth, orientation, palette, image)


# ---- pages


def _page(pages: Any, number: int) -> tifffile.TiffPage | None:
    """A page; None where there are fewer."""
    try:
        found = pages[number]
    except IndexError:
        return None
    return found if isinstance(found, tifffile.TiffPage) else found.aspage()


def _other_pages(path: Path, tiff: tifffile.TiffFile, used: set[int]) -> Iterator[tifffile.TiffPage]:
    """The pages that are not used; more pages than a file of one image has are refused."""
    for number in range(_MAX_PAGES):
        if number not in used:
            if (page := _page(tiff.pages, number)) is None:
                return
            yield page
    if _MAX_PAGES not in used and _page(tiff.pages, _MAX_PAGES) is not None:
        raise ImageReadError(f"{path}: expected at most {_MAX_PAGES} pages, got more. {_STACK}")


def _reduced(
    path: Path, pages: tuple[tifffile.TiffPage, ...], rest: Iterator[tifffile.TiffPage]
) -> list[tuple[tifffile.TiffPage, ...]]:
    """The reduced resolutions among further pages and sub-images; other images are refused."""
    levels: list[tuple[tifffile.TiffPage, ...]] = []
    sizes = {(pages[0].imagewidth, pages[0].imagelength)}
    chained = list(rest)
    sub_images = [list(_sub_images(path, page)) for page in pages]
    if len({len(each) for each in sub_images}) > 1:
        raise ImageReadError(f"{path}: expected the same sub-images for each channel, got others. {_STACK}")
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
    if len(offsets) > _MAX_PAGES:
        raise ImageReadError(f"{path}: expected at most {_MAX_PAGES} sub-images, got {len(offsets)}. {_STACK}")
    for number in range(len(offsets)):
        found = _page(page.pages, number)
        if found is not None:
            yield found


def _is_level(path: Path, main: tifffile.TiffPage, page: tifffile.TiffPage, source: str) -> bool:
    """Whether a further page is a reduced resolution of the main one; False: an image that states to be beside it."""
    width, height, w, h = main.imagewidth, main.imagelength, page.imagewidth, page.imagelength
    found = f"a {source} of {w} x {h} beside one of {width} x {height}"
    if not min(width, height, w, h):
        raise ImageReadError(f"{path}: expected pages with pixels, got {found}. Export it again.")
    reduced = bool(page.subfiletype & 1)
    if page.subfiletype & 4 or page.photometric == _PHOTOMETRIC.MASK:
        raise ImageReadError(f"{path}: expected an image, got {found} that is its transparency mask. Export it again.")
    if w > width or h > height:
        raise ImageReadError(
            f"{path}: expected the main image first, got {found}. Export the main image as a file of its own."
        )
    if main.subfiletype & 1 and not reduced:
        raise ImageReadError(f"{path}: expected the main image first, got a reduced one first. {_STACK}")
    same_shape = abs(w * height / width - h) <= max(1.5, 0.02 * h)  # sizes of levels are rounded
    same_samples = (page.samplesperpixel, page.bitspersample, page.sampleformat) == (
        main.samplesperpixel,
        main.bitspersample,
        main.sampleformat,
    ) and _color_of(page) == _color_of(main)
    ratio = np.log2(width / w)
    power = ratio > 0.5 and abs(ratio - round(ratio)) < 0.03
    if same_shape and same_samples and (w, h) != (width, height) and (reduced or power or source == "sub-image"):
        return True
    if reduced:  # a thumbnail, label or macro image, which states to be one
        return False
    raise ImageReadError(f"{path}: expected one image, got {found}: several images in one file. {_STACK}")


def _color_of(page: tifffile.TiffPage) -> Color | None:
    return _COLORS.get(int(page.photometric), (None, 0))[0]


# ---- OME, ImageJ, and tifffile's own description of shapes


def _ome_image(path: Path, xml: str, first: tifffile.TiffPage) -> tuple[OmeImage, set[int]]:
    """The image that is meant, and the pages of the images beside it."""
    try:
        ome: OmeFile = parse_ome(xml, path, _MAX_PAGES, first.samplesperpixel)
    except ValueError as error:
        raise ImageReadError(
            f"{path}: expected valid OME-XML, got some that is not: {error}. Export it again."
        ) from error
    if ome.companion:
        raise ImageReadError(
            f"{path}: expected an OME-TIFF of one file, got one that is described by {ome.companion}. "
            "Export it as a file of its own."
        )
    here = [image for image in ome.images if image.planes]
    main = [image for image in here if not any(name in image.name.lower() for name in _SIDE_IMAGES)] or here
    if not main:
        others = sorted({name for image in ome.images for name in image.elsewhere})
        raise ImageReadError(
            f"{path}: expected pixels of an image of the OME-XML in this file, got all in other files "
            f"({', '.join(others[:3]) or 'none stated'}). Give it back the name under which it was written, or export "
            "it as a file of its own."
        )
    image = main[0]
    for other in main[1:]:
        ratio = np.log2(image.width / max(1, other.width))
        level = abs(other.width * image.height / max(1, other.height * image.width) - 1) < 0.02
        if not (level and ratio > 0.5 and abs(ratio - round(ratio)) < 0.03):
            raise ImageReadError(
                f"{path}: expected one image, got {len(main)} in the OME-XML ({_named(image)}; {_named(other)} …). "
                f"{_STACK}"
            )
    if image.elsewhere:
        raise ImageReadError(
            f"{path}: expected an OME-TIFF of one file, got one whose planes are also in {image.elsewhere[0]}. "
            "Export it as a file of its own."
        )
    z, _, t = image.sizes
    if z * t > 1:
        raise ImageReadError(f"{path}: expected one plane, got {z} planes in depth at {t} times. {_STACK}")
    return image, {plane.page for other in here if other is not image for plane in other.planes if other not in main}


def _named(image: OmeImage) -> str:
    return f"{image.name or 'unnamed'}, {image.width} x {image.height}"


def _ome_pages(path: Path, tiff: tifffile.TiffFile, image: OmeImage) -> tuple[tifffile.TiffPage, ...]:
    by_channel = {plane.c: plane.page for plane in image.planes}
    channels = len(by_channel)
    pages = tuple(_page(tiff.pages, by_channel[c]) for c in sorted(by_channel))
    if None in pages or sorted(by_channel) != list(range(channels)):
        raise ImageReadError(
            f"{path}: expected all planes of the OME-XML's image in this file, got only some of them. Export it again."
        )
    found = tuple(page for page in pages if page is not None)
    samples = found[0].samplesperpixel
    if image.sizes[1] != channels * samples:
        raise ImageReadError(
            f"{path}: expected {image.sizes[1]} channels as the OME-XML states, got {channels} pages of {samples}. "
            f"{_FLUORESCENCE}"
        )
    _check_channels(path, channels, samples, image.channels)
    if (found[0].imagewidth, found[0].imagelength) != (image.width, image.height):
        raise ImageReadError(
            f"{path}: expected an image of {image.width} x {image.height} as the OME-XML states, got "
            f"{found[0].imagewidth} x {found[0].imagelength}. Its metadata is that of another image; export it again."
        )
    _check_same(path, found)
    return found


def _check_channels(path: Path, channels: int, samples: int, stated: tuple[OmeChannel, ...]) -> None:
    if channels * samples not in (1, 2, 3, 4) or (channels > 1 and (channels, samples) != (3, 1)):
        raise ImageReadError(
            f"{path}: expected 1 (gray) or 3 (RGB) channels, got {channels * samples}. {_FLUORESCENCE}"
        )
    if channels == 1:
        return
    for number, channel in enumerate(stated[:3]):
        name = channel.name.strip().lower()
        automatic = not name or name.startswith(("channel", "ch")) or name.strip("c0123456789:_ -") == ""
        if (
            channel.fluorescent
            or channel.color not in (None, _RGB[number])
            or not (automatic or name in _RGB_NAMES[number])
        ):
            raise ImageReadError(
                f"{path}: expected red, green and blue, got a channel {channel.name or number + 1!r} that is another. "
                f"{_FLUORESCENCE}"
            )


def _imagej_pages(
    path: Path, tiff: tifffile.TiffFile, description: str
) -> tuple[tuple[tifffile.TiffPage, ...], Iterator[tifffile.TiffPage]]:
    values = dict(line.split("=", 1) for line in description.splitlines() if "=" in line)
    count = {}
    for key in ("images", "channels", "slices", "frames"):
        with suppress(ValueError):
            count[key] = int(values.get(key, "1"))
    images, channels = count.get("images", 1), count.get("channels", 1)
    if count.get("slices", 1) * count.get("frames", 1) > 1 or images > max(channels, 1):
        raise ImageReadError(f"{path}: expected one image, got an ImageJ stack of {images}. {_STACK}")
    first = _page(tiff.pages, 0)
    assert first is not None
    samples = first.samplesperpixel
    if channels > 1 and samples > 1:
        channels = 1 if channels == samples else channels
    _check_channels(path, channels, samples, ())
    if channels == 1:
        return (first,), _other_pages(path, tiff, {0})
    lookup = (first.tags.valueof(50839) or {}) if isinstance(first.tags.valueof(50839), dict) else {}
    for number, table in enumerate(lookup.get("LUTs", ())[:3]):
        if (np.asarray(table)[:, -1] != _RGB[number]).any():
            raise ImageReadError(
                f"{path}: expected red, green and blue, got channels in other colors (ImageJ). {_FLUORESCENCE}"
            )
    found = tuple(page for number in range(channels) if (page := _page(tiff.pages, number)) is not None)
    if len(found) != channels:
        raise ImageReadError(f"{path}: expected {channels} pages as ImageJ states, got {len(found)}. Export it again.")
    _check_same(path, found)
    return found, _other_pages(path, tiff, set(range(channels)))


def _check_same(path: Path, pages: tuple[tifffile.TiffPage, ...]) -> None:
    facts = {
        (p.imagewidth, p.imagelength, p.bitspersample, p.sampleformat, p.samplesperpixel, int(p.photometric))
        for p in pages
    }
    if len(facts) > 1:
        raise ImageReadError(f"{path}: expected channels of one size and type, got others. Export it as RGB.")


def _check_shaped(path: Path, description: str, page: tifffile.TiffPage) -> None:
    """Refuse a stack of tifffile in one page, which only its description tells."""
    if not description.startswith('{"shape":'):
        return
    try:
        stated = parse_json(description)
        stack = bool(stated.get("truncated")) and int(np.prod(stated["shape"])) > int(np.prod(page.shaped))
    except (ValueError, TypeError, KeyError, OverflowError):  # the description of another program
        return
    if stack:
        raise ImageReadError(
            f"{path}: expected one image, got a stack of shape {stated['shape']} behind one page. {_STACK}"
        )


# ---- samples


def _check_samples(path: Path, page: tifffile.TiffPage, pages: int) -> tuple[Color, int, Alpha | None]:
    """What the samples of a page mean: color, number of color samples, alpha."""
    if 262 not in page.tags:
        raise ImageReadError(f"{path}: expected a stated photometric interpretation, got none. Export it again.")
    name = getattr(page.photometric, "name", page.photometric)
    if int(page.photometric) not in _COLORS or page.imagedepth != 1:
        raise ImageReadError(f"{path}: expected gray, RGB, palette or CMYK values, got {name}. Export it as 8-bit RGB.")
    compression = int(page.compression)
    if page.photometric == _PHOTOMETRIC.YCBCR and compression not in _JPEG:
        raise ImageReadError(
            f"{path}: expected YCbCr colors in JPEG compression only, got "
            f"{getattr(page.compression, 'name', compression)}. Export it as 8-bit RGB."
        )
    if page.photometric == _PHOTOMETRIC.SEPARATED and page.tags.valueof(332, 1) != 1:
        raise ImageReadError(f"{path}: expected CMYK inks, got others. Export it as 8-bit RGB.")
    color, samples = _COLORS[int(page.photometric)]
    extra = page.samplesperpixel - samples
    meanings = page.tags.valueof(338, ())
    meanings = tuple(meanings) if isinstance(meanings, tuple | list) else (meanings,)
    if pages > 1:
        if color != "gray" or page.samplesperpixel != 1:
            raise ImageReadError(f"{path}: expected a gray page per channel, got {name} of {page.samplesperpixel}.")
        return "rgb", 3, None
    if extra < 0 or extra > 1 or (extra == 1 and color in ("palette", "cmyk")):
        raise ImageReadError(
            f"{path}: expected {samples} samples a pixel for {name}, got {page.samplesperpixel}. {_FLUORESCENCE}"
        )
    if not extra:
        return color, samples, None
    if len(meanings) != 1:
        raise ImageReadError(
            f"{path}: expected the meaning of sample {samples + 1} of {samples + 1} to be stated (ExtraSamples), got "
            f"none. {_FLUORESCENCE}"
        )
    if meanings[0] == 1:
        return color, samples, "premultiplied"
    if meanings[0] == 2:
        return color, samples, "straight"
    if meanings[0] == 0 and samples == 3:  # unspecified: not a color, and not transparency
        return color, samples, None
    raise ImageReadError(
        f"{path}: expected sample {samples + 1} of {samples + 1} to be transparency, got one that is stated to be "
        f"something else (ExtraSamples {meanings[0]}). {_FLUORESCENCE}"
    )


def _check_type(path: Path, page: tifffile.TiffPage) -> tuple[int, str]:
    """Bits and kind of the samples, where pages can be decoded at all."""
    compression = int(page.compression)
    name = getattr(page.compression, "name", str(compression))
    try:
        known = compression == 1 or (compression != _OLD_JPEG and tifffile.TIFF.DECOMPRESSORS[compression] is not None)
    except KeyError:
        known = False
    if not known:
        raise ImageReadError(
            f"{path}: expected a compression that can be read, got {name} (TIFF compression {compression}), which is "
            "not supported. The file may well be sound: export it with LZW, Deflate, JPEG or no compression."
        )
    bits, kinds = page.bitspersample, {1: "u", 2: "i", 3: "f", 4: "u"}
    if not isinstance(bits, int) or page.dtype is None or int(page.sampleformat) not in kinds:
        raise ImageReadError(
            f"{path}: expected samples of one type of whole numbers or floats, got {bits} bits of format "
            f"{getattr(page.sampleformat, 'name', page.sampleformat)}. Export it as 8-bit RGB."
        )
    return bits, kinds[int(page.sampleformat)]


def _orientation(path: Path, page: tifffile.TiffPage) -> int:
    orientation = page.tags.valueof(274, 1)
    if orientation not in range(1, 9):
        raise ImageReadError(f"{path}: expected an orientation of 1 to 8, got {orientation}. Export it again.")
    return int(orientation)


def _palette(path: Path, page: tifffile.TiffPage, bits: int) -> npt.NDArray[np.uint8]:
    colors = page.colormap
    if colors is None or colors.shape != (3, 2**bits):
        raise ImageReadError(f"{path}: expected {2**bits} colors in the palette, got others. Export it as 8-bit RGB.")
    values = colors.T  # 16 bits, though some programs write 8
    return np.ascontiguousarray(values if values.max() < 256 else values >> 8).astype(np.uint8)
