"""The pages of the image that is meant where OME-XML, ImageJ or tifffile describe planes and channels."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from microseg.errors import ImageReadError
from microseg.parsing import parse_json
from microseg.slides.channels import CHANNEL_ADVICE, RGB_NAMES, is_automatic_name
from microseg.slides.ome import OmeChannel, OmeFile, OmeImage, parse_ome
from microseg.slides.tiff_pages import MAX_PAGES, STACK, other_pages, page_at

__all__ = [
    "check_alike",
    "check_shaped",
    "imagej_names",
    "imagej_pages",
    "ome_image",
    "ome_names",
    "ome_pages",
    "page_facts",
]

_SIDE_IMAGES = ("label", "macro", "thumbnail", "overview", "barcode")
_RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def ome_image(path: Path, xml: str, first: tifffile.TiffPage) -> tuple[OmeImage, set[int]]:
    """The image that is meant, and the pages of the images beside it."""
    try:
        ome: OmeFile = parse_ome(xml, path, MAX_PAGES, first.samplesperpixel)
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
                f"{STACK}"
            )
    if image.elsewhere:
        raise ImageReadError(
            f"{path}: expected an OME-TIFF of one file, got one whose planes are also in {image.elsewhere[0]}. "
            "Export it as a file of its own."
        )
    z, _, t = image.sizes
    if z * t > 1:
        raise ImageReadError(f"{path}: expected one plane, got {z} planes in depth at {t} times. {STACK}")
    return image, {plane.page for other in here if other is not image for plane in other.planes if other not in main}


def _named(image: OmeImage) -> str:
    return f"{image.name or 'unnamed'}, {image.width} x {image.height}"


def ome_pages(
    path: Path, tiff: tifffile.TiffFile, image: OmeImage, *, channels: bool = False
) -> tuple[tifffile.TiffPage, ...]:
    """The pages of an image of the OME-XML: one, or three that are red, green and blue; or those of any channels."""
    by_channel = {plane.c: plane.page for plane in image.planes}
    count = len(by_channel)
    pages = tuple(page_at(tiff.pages, by_channel[c]) for c in sorted(by_channel))
    if None in pages or sorted(by_channel) != list(range(count)):
        raise ImageReadError(
            f"{path}: expected all planes of the OME-XML's image in this file, got only some of them. Export it again."
        )
    found = tuple(page for page in pages if page is not None)
    samples = found[0].samplesperpixel
    if image.sizes[1] != count * samples:
        raise ImageReadError(
            f"{path}: expected {image.sizes[1]} channels as the OME-XML states, got {count} pages of {samples}. "
            "Export it again."
        )
    if not channels:
        _check_colors(path, count, samples, image.channels)
    if (found[0].imagewidth, found[0].imagelength) != (image.width, image.height):
        raise ImageReadError(
            f"{path}: expected an image of {image.width} x {image.height} as the OME-XML states, got "
            f"{found[0].imagewidth} x {found[0].imagelength}. Its metadata is that of another image; export it again."
        )
    check_alike(path, found)
    return found


def ome_names(image: OmeImage, samples: int) -> tuple[str, ...]:
    """Names of so many samples; empty where none is stated, or one that says nothing."""
    stated = [channel for channel in image.channels for _ in range(channel.samples)]
    if [channel.samples for channel in image.channels] == [3] and samples == 3:
        return RGB_NAMES
    if len(stated) != samples or any(channel.samples > 1 for channel in stated):
        return ("",) * samples
    return tuple("" if is_automatic_name(channel.name) else channel.name for channel in stated)


def _check_colors(path: Path, channels: int, samples: int, stated: tuple[OmeChannel, ...]) -> None:
    """Refuse channels that are not gray or red, green and blue."""
    if channels * samples not in (1, 2, 3, 4) or (channels > 1 and (channels, samples) != (3, 1)):
        raise ImageReadError(
            f"{path}: expected 1 (gray) or 3 (RGB) channels, got {channels * samples}. {CHANNEL_ADVICE}"
        )
    if channels == 1:
        return
    for number, channel in enumerate(stated[:3]):
        name = channel.name.strip().lower()
        if (
            channel.fluorescent
            or channel.color not in (None, _RGB[number])
            or not (is_automatic_name(name) or name in (RGB_NAMES[number], RGB_NAMES[number][0]))
        ):
            raise ImageReadError(
                f"{path}: expected red, green and blue, got a channel {channel.name or number + 1!r} that is another. "
                f"{CHANNEL_ADVICE}"
            )


def imagej_pages(
    path: Path, tiff: tifffile.TiffFile, description: str, *, channels: bool = False
) -> tuple[tuple[tifffile.TiffPage, ...], Iterator[tifffile.TiffPage]]:
    """The pages of the image of an ImageJ file, and the further ones; stacks are refused."""
    values = dict(line.split("=", 1) for line in description.splitlines() if "=" in line)
    number = {}
    for key in ("images", "channels", "slices", "frames"):
        with suppress(ValueError):
            number[key] = int(values.get(key, "1"))
    images, count = number.get("images", 1), number.get("channels", 1)
    if channels and count == 1 and number.get("slices", 1) * number.get("frames", 1) == 1:
        count = images  # a stack whose planes are not said to be anything else
    if number.get("slices", 1) * number.get("frames", 1) > 1 or images > max(count, 1):
        raise ImageReadError(f"{path}: expected one image, got an ImageJ stack of {images}. {STACK}")
    first = page_at(tiff.pages, 0)
    assert first is not None
    samples = first.samplesperpixel
    if count > 1 and samples > 1:
        count = 1 if count == samples else count
    if not channels:
        _check_colors(path, count, samples, ())
    if count == 1:
        return (first,), other_pages(path, tiff, {0})
    if not channels:
        for place, table in enumerate(_imagej_metadata(first).get("LUTs", ())[:3]):
            if (np.asarray(table)[:, -1] != _RGB[place]).any():
                raise ImageReadError(
                    f"{path}: expected red, green and blue, got channels in other colors (ImageJ). {CHANNEL_ADVICE}"
                )
    found = tuple(page for place in range(count) if (page := page_at(tiff.pages, place)) is not None)
    if len(found) != count:
        raise ImageReadError(f"{path}: expected {count} pages as ImageJ states, got {len(found)}. Export it again.")
    check_alike(path, found)
    return found, other_pages(path, tiff, set(range(count)))


def imagej_names(page: tifffile.TiffPage, samples: int) -> tuple[str, ...]:
    """Names of so many channels that ImageJ states; empty where it states none, or some that say nothing."""
    labels = [str(label) for label in _imagej_metadata(page).get("Labels", ())]
    if len(labels) != samples:
        return ("",) * samples
    return tuple("" if is_automatic_name(label) else label for label in labels)


def _imagej_metadata(page: tifffile.TiffPage) -> dict[str, Any]:
    found = page.tags.valueof(50839)
    return found if isinstance(found, dict) else {}


def page_facts(page: tifffile.TiffPage) -> tuple[Any, ...]:
    """Size and type of a page, in which the channels of an image agree."""
    return (
        page.imagewidth,
        page.imagelength,
        page.bitspersample,
        page.sampleformat,
        page.samplesperpixel,
        int(page.photometric),
    )


def check_alike(path: Path, pages: tuple[tifffile.TiffPage, ...]) -> None:
    """Refuse channels of different sizes or types."""
    if len({page_facts(page) for page in pages}) > 1:
        raise ImageReadError(f"{path}: expected channels of one size and type, got others. Export it as RGB.")


def check_shaped(path: Path, description: str, page: tifffile.TiffPage) -> None:
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
            f"{path}: expected one image, got a stack of shape {stated['shape']} behind one page. {STACK}"
        )
