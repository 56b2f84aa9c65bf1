"""The OME-XML of a TIFF file: its images, their channels, and which pages of this file hold them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from microseg.parsing import parse_xml

__all__ = ["OmeChannel", "OmeFile", "OmeImage", "Plane", "is_ome", "parse_ome"]

_MAX_IMAGES = 1000
_MAX_BYTES = 2**24


class Plane(NamedTuple):
    """A plane of an image and the page of this file that holds it."""

    z: int
    c: int
    t: int
    page: int


@dataclass(frozen=True)
class OmeChannel:
    """One channel.

    Attributes:
        samples: Samples per pixel: 3 for RGB in one channel.
        name: Name; empty where not stated.
        color: RGB; None where not stated, or white.
        fluorescent: Whether a fluorophore, an emission wavelength or a fluorescence contrast is stated.
    """

    samples: int
    name: str
    color: tuple[int, int, int] | None
    fluorescent: bool


@dataclass(frozen=True)
class OmeImage:
    """One image of the file.

    Attributes:
        name: Its name; empty where not stated.
        width: Pixels.
        height: Pixels.
        sizes: Number of planes in z, of channels (samples count), and of times.
        channels: Channels; empty where not stated.
        significant_bits: Bits that hold the values; None where not stated.
        pixel_size: Size and unit of a pixel in x and y; None where not stated.
        planes: Planes that this file holds.
        elsewhere: Names of other files that hold planes.
    """

    name: str
    width: int
    height: int
    sizes: tuple[int, int, int]
    channels: tuple[OmeChannel, ...]
    significant_bits: int | None
    pixel_size: tuple[tuple[float, str], tuple[float, str]] | None
    planes: tuple[Plane, ...]
    elsewhere: tuple[str, ...]


@dataclass(frozen=True)
class OmeFile:
    """What the OME-XML says.

    Attributes:
        images: The images.
        companion: File that holds the metadata instead; empty where there is none.
    """

    images: tuple[OmeImage, ...]
    companion: str


def is_ome(description: str) -> bool:
    """Whether a TIFF description is OME-XML."""
    return re.search(r"<(\w+:)?OME\b", description[:4096]) is not None


def parse_ome(xml: str, path: Path, pages: int, samples: int) -> OmeFile:
    """Parse OME-XML.

    Args:
        xml: Description of the file's first page.
        path: The file.
        pages: Number of pages that are looked for at most.
        samples: Samples per pixel of the first page, for images that state none.

    Raises:
        ValueError: It states what cannot be.
        ParseError: It is not well-formed, or too large.
    """
    root = parse_xml(xml.strip().rstrip("\0").encode(), _MAX_BYTES)
    companion = _first(root, "BinaryOnly")
    if companion is not None:
        return OmeFile((), companion.get("MetadataFile", "?"))
    found = [element for element in root if _tag(element) == "Image"]
    if len(found) > _MAX_IMAGES:
        raise ValueError(f"it has {len(found)} images")
    uuid = root.get("UUID")
    own = [_parse_image(element, uuid, path.name, pages, samples, single=len(found) == 1) for element in found]
    return OmeFile(tuple(own), "")


def _parse_image(
    element: ElementTree.Element, uuid: str | None, file: str, pages: int, samples: int, *, single: bool
) -> OmeImage:
    pixels = _first(element, "Pixels")
    if pixels is None:
        raise ValueError("an Image has no Pixels")
    size = {axis: int(pixels.get(f"Size{axis}", "1")) for axis in "XYZCT"}
    if min(size.values()) < 1:
        raise ValueError("a size is below 1")
    channels = tuple(_parse_channel(each) for each in pixels if _tag(each) == "Channel")
    stated = sum(channel.samples for channel in channels) == size["C"]
    count = len(channels) if stated else max(1, size["C"] // samples)  # planes along C
    axes = {"Z": size["Z"], "C": count, "T": size["T"]}
    order = [axis for axis in pixels.get("DimensionOrder", "XYCZT") if axis in axes]
    if sorted(order) != ["C", "T", "Z"]:
        raise ValueError(f"the order of dimensions is {pixels.get('DimensionOrder')}")
    planes, elsewhere = list[Plane](), list[str]()
    total = axes["Z"] * axes["C"] * axes["T"]
    for data in (each for each in pixels if _tag(each) == "TiffData"):
        part = _first(data, "UUID")
        if part is not None:
            name, same = part.get("FileName", ""), uuid is not None and (part.text or "").strip() == uuid
            if not same and ((uuid is not None and part.text) or name != file):
                elsewhere.append(name or "?")
                continue
        first = int(data.get("IFD", "0"))
        number = int(data.get("PlaneCount", "1" if "IFD" in data.attrib else str(total)))
        start = {axis: int(data.get(f"First{axis}", "0")) for axis in order}
        at = start[order[0]] + axes[order[0]] * (start[order[1]] + axes[order[1]] * start[order[2]])
        for step in range(min(number, pages + 1)):
            one, rest = (at + step) % axes[order[0]], (at + step) // axes[order[0]]
            where = {order[0]: one, order[1]: rest % axes[order[1]], order[2]: rest // axes[order[1]]}
            planes.append(Plane(where["Z"], where["C"], where["T"], first + step))
    if not planes and not elsewhere and single and not any(_tag(each) == "TiffData" for each in pixels):
        planes = [Plane(0, step, 0, step) for step in range(min(total, pages))]
    bits = pixels.get("SignificantBits")
    return OmeImage(
        name=element.get("Name", ""),
        width=size["X"],
        height=size["Y"],
        sizes=(size["Z"], size["C"], size["T"]),
        channels=channels,
        significant_bits=int(bits) if bits else None,
        pixel_size=_pixel_size(pixels),
        planes=tuple(planes),
        elsewhere=tuple(elsewhere),
    )


def _parse_channel(element: ElementTree.Element) -> OmeChannel:
    value = int(element.get("Color", "-1")) & 0xFFFFFFFF  # RGBA
    color = (value >> 24, value >> 16 & 255, value >> 8 & 255)
    return OmeChannel(
        samples=int(element.get("SamplesPerPixel", "1")),
        name=element.get("Name", ""),
        color=None if color == (255, 255, 255) else color,
        fluorescent=bool(element.get("Fluor") or element.get("EmissionWavelength"))
        or element.get("ContrastMethod") == "Fluorescence"
        or element.get("IlluminationType") == "Epifluorescence",
    )


def _pixel_size(pixels: ElementTree.Element) -> tuple[tuple[float, str], tuple[float, str]] | None:
    sizes = [(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
    try:
        x, y = [(float(size), unit) for size, unit in sizes if size is not None]
    except ValueError:
        return None
    return x, y


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _first(element: ElementTree.Element, tag: str) -> ElementTree.Element | None:
    return next((each for each in element if _tag(each) == tag), None)
