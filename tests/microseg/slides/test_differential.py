"""Generated TIFF files of all layouts: images, slides and independent decoders agree, or both paths refuse.

The files are written by a writer of its own, which knows nothing of tifffile, and the right pixels are computed from
what was written. The stored samples are also compared with those that GDAL decodes, the colors with those of Pillow
where Pillow applies the tags in the same way. The table, of 40 files for each layout, also as JSON in the file that
the variable DIFFERENTIAL_JSON names::

    python -m pytest -q -s -m long tests/microseg/slides/test_differential.py
"""

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from benchmarks.results import provenance
from microseg.errors import ImageReadError
from microseg.slides.images import read_image
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import open_slide
from microseg.slides.tiff_image import TiffImage

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
assert NotGeoreferencedWarning

Values = npt.NDArray[Any]
PHOTOMETRIC = {"white is zero": 0, "gray": 1, "rgb": 2, "palette": 3, "cmyk": 5, "ycbcr": 6}
COLORS = {"white is zero": 1, "gray": 1, "rgb": 3, "palette": 1, "cmyk": 4, "ycbcr": 3}
COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773, "zstd": 50000, "webp": 50001, "jpeg 2000": 34712}
COMPRESSIONS |= {"jpeg": 7}
EXTRAS = {"none": None, "straight": 2, "premultiplied": 1, "unspecified": 0, "untagged": -1}


@dataclass(frozen=True)
class Layout:
    """What is written."""

    color: str = "rgb"
    bits: int = 8
    float_: bool = False
    extra: str = "none"
    planar: bool = False
    tiled: bool = False
    compression: str = "none"
    predictor: bool = False
    orientation: int = 1
    big_endian: bool = False
    big: bool = False
    pages: str = "one"
    unit: int | None = None
    width: int = 37
    height: int = 29

    @property
    def refused(self) -> bool:
        """Whether nobody can say what the colors are."""
        if self.extra == "untagged" or (self.extra == "unspecified" and COLORS[self.color] == 1):
            return True
        if self.extra != "none" and self.color in ("palette", "cmyk"):
            return True
        return self.pages in ("two", "depth", "fluorescence", "larger", "positions", "other file") or (
            self.bits == 32 and not self.float_
        )


def samples_of(layout: Layout) -> int:
    return COLORS[layout.color] + (layout.extra != "none")


# ---- writing


def encode(layout: Layout, block: Values) -> bytes:
    """One strip or tile (rows, columns, samples)."""
    rows, _, samples = block.shape
    if layout.compression in ("webp", "jpeg 2000", "jpeg"):
        plain = np.ascontiguousarray(block if samples > 1 else block[..., 0])
        if layout.compression == "webp":
            return bytes(imagecodecs.webp_encode(plain, lossless=True))
        if layout.compression == "jpeg 2000":
            return bytes(imagecodecs.jpeg2k_encode(plain, level=0, reversible=True, codecformat="j2k", mct=False))
        space = {"ycbcr": "YCBCR", "rgb": "RGB"}.get(layout.color)
        return bytes(
            imagecodecs.jpeg_encode(
                plain, level=95, colorspace="RGB" if space else None, outcolorspace=space, subsampling="444"
            )
        )
    if layout.predictor:
        block = np.diff(block, axis=1, prepend=np.zeros((rows, 1, samples), block.dtype)).astype(block.dtype)
    if layout.bits in (8, 16, 32):
        raw = block.astype(block.dtype.newbyteorder(">" if layout.big_endian else "<")).tobytes()
    else:  # each row begins with a whole byte
        bits = ((block.reshape(rows, -1, 1).astype(np.uint32) >> np.arange(layout.bits - 1, -1, -1)) & 1).astype(
            np.uint8
        )
        raw = np.packbits(bits.reshape(rows, -1), axis=1).tobytes()
    encoders: dict[str, Any] = {
        "none": lambda data: data,
        "lzw": imagecodecs.lzw_encode,
        "deflate": imagecodecs.zlib_encode,
        "packbits": imagecodecs.packbits_encode,
        "zstd": imagecodecs.zstd_encode,
    }
    return bytes(encoders[layout.compression](raw))


def segments(layout: Layout, stored: Values) -> list[bytes]:
    height, width, samples = stored.shape
    planes = [stored[..., s : s + 1] for s in range(samples)] if layout.planar else [stored]
    found = []
    for plane in planes:
        if layout.tiled:
            padded = np.pad(plane, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
            places = [(y, x) for y in range(0, height, 16) for x in range(0, width, 16)]
            found += [encode(layout, padded[y : y + 16, x : x + 16]) for y, x in places]
        else:
            found += [encode(layout, plane[y : y + 7]) for y in range(0, height, 7)]
    return found


def tags_of(
    layout: Layout, stored: Values, offsets: list[int], counts: list[int]
) -> dict[int, tuple[int, tuple[Any, ...]]]:
    height, width, samples = stored.shape
    tags: dict[int, tuple[int, tuple[Any, ...]]] = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (layout.bits,) * samples),
        259: (3, (COMPRESSIONS[layout.compression],)),
        262: (3, (PHOTOMETRIC[layout.color],)),
        277: (3, (samples,)),
        284: (3, (2 if layout.planar else 1,)),
        339: (3, (3 if layout.float_ else 1,) * samples),
    }
    if layout.tiled:
        tags |= {322: (3, (16,)), 323: (3, (16,)), 324: (4, tuple(offsets)), 325: (4, tuple(counts))}
    else:
        tags |= {273: (4, tuple(offsets)), 278: (3, (7,)), 279: (4, tuple(counts))}
    if layout.orientation != 1:
        tags[274] = (3, (layout.orientation,))
    if layout.predictor:
        tags[317] = (3, (2,))
    if (meaning := EXTRAS[layout.extra]) is not None and meaning >= 0:
        tags[338] = (3, (meaning,))
    if layout.unit is not None:
        tags |= {282: (5, (20_000, 1)), 283: (5, (20_000, 1)), 296: (3, (layout.unit,))}
    return tags


def write_tiff(
    path: Path, layout: Layout, pages: list[tuple[Values, dict[int, Any]]], sub: list[Values] | None = None
) -> None:
    """Write pages of stored samples with further tags; the sub-images belong to the first page."""
    order, wide = ">" if layout.big_endian else "<", layout.big
    content = bytearray(b"MM" if layout.big_endian else b"II")
    content += struct.pack(order + ("HHHQ" if wide else "HI"), *((43, 8, 0, 0) if wide else (42, 0)))
    sizes = {2: 1, 3: 2, 4: 4, 5: 8, 16: 8}
    formats = {2: "B", 3: "H", 4: "I", 5: "I", 16: "Q"}

    def directory(stored: Values, more: dict[int, Any], link: int | None) -> tuple[int, int]:
        """Append a directory and its data; returns its offset, and that of the link to the next one."""
        offsets, counts = [], []
        for segment in segments(layout, stored):
            content.extend(b"\0" * (len(content) % 2))
            offsets.append(len(content))
            counts.append(len(segment))
            content.extend(segment)
        entries = []
        for tag, (kind, values) in sorted((tags_of(layout, stored, offsets, counts) | more).items()):
            number = len(values) // (2 if kind == 5 else 1)
            data = struct.pack(f"{order}{len(values)}{formats[kind]}", *values)
            room = 8 if wide else 4
            if len(data) > room:
                content.extend(b"\0" * (len(content) % 2))
                at = len(content)
                content.extend(data)
                data = struct.pack(order + ("Q" if wide else "I"), at)
            entries.append(struct.pack(order + ("HHQ" if wide else "HHI"), tag, kind, number) + data.ljust(room, b"\0"))
            assert number * sizes[kind] >= 0
        content.extend(b"\0" * (len(content) % 2))
        start = len(content)
        content.extend(struct.pack(order + ("Q" if wide else "H"), len(entries)) + b"".join(entries))
        after = len(content)
        content.extend(bytes(8 if wide else 4))
        if link is not None:
            struct.pack_into(order + ("Q" if wide else "I"), content, link, start)
        return start, after

    link = 8 if wide else 4
    subs = [directory(each, {254: (4, (1,))}, None)[0] for each in sub or ()]
    for number, (stored, more) in enumerate(pages):
        extra = {330: (4, tuple(subs))} if subs and number == 0 else {}
        link = directory(stored, more | extra, link)[1]
    path.write_bytes(content)


# ---- what is right


def stored_samples(layout: Layout, rng: np.random.Generator, width: int, height: int) -> Values:
    shape = (height, width, samples_of(layout))
    if layout.float_:
        return rng.random(shape, np.float32)
    kind = np.uint32 if layout.bits == 32 else np.uint16 if layout.bits > 8 else np.uint8
    values = rng.integers(0, 2**layout.bits, shape).astype(kind)
    if layout.compression == "jpeg":
        values = np.broadcast_to(np.arange(width)[:, None] * 3 + np.arange(shape[2]) * 20, shape).astype(kind)
    if layout.extra == "premultiplied":
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    return values


def right_colors(layout: Layout, stored: Values, palette: Values) -> npt.NDArray[np.float64]:
    """RGB in 0..255, not rounded, before it is turned."""
    full = 1.0 if layout.float_ else 2.0**layout.bits - 1
    if layout.color == "palette":
        return (palette[stored[..., 0]] >> 8).astype(np.float64)
    colors = stored[..., : COLORS[layout.color]] / full * 255
    if layout.color == "white is zero":
        colors = 255 - colors
    if layout.color == "cmyk":
        colors = (255 - colors[..., :3]) * (255 - colors[..., 3:]) / 255
    if layout.extra in ("straight", "premultiplied"):
        alpha = stored[..., -1:] / full
        colors = colors * (alpha if layout.extra == "straight" else 1) + 255 * (1 - alpha)
    return np.broadcast_to(colors, (*colors.shape[:2], 3))


def turned(values: Values, orientation: int) -> Values:
    """Upright pixels, by the meaning of each orientation in TIFF 6.0."""
    return {
        1: lambda v: v,
        2: np.fliplr,
        3: lambda v: np.rot90(v, 2),
        4: np.flipud,
        5: lambda v: np.swapaxes(v, 0, 1),
        6: lambda v: np.rot90(v, -1),
        7: lambda v: np.rot90(np.swapaxes(v, 0, 1), 2),
        8: lambda v: np.rot90(v, 1),
    }[orientation](values)


OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a">{images}</OME>'
OME_IMAGE = (
    '<Image ID="Image:{n}"><Pixels ID="Pixels:{n}" DimensionOrder="XYCZT" Type="uint8" SizeX="{w}" SizeY="{h}" '
    'SizeC="{c}" SizeZ="{z}" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">{channels}{data}</Pixels></Image>'
)


def described(layout: Layout, text: str) -> dict[int, Any]:
    return {270: (2, tuple(text.encode() + b"\0"))}


def write(path: Path, layout: Layout, seed: int) -> tuple[Values, npt.NDArray[np.float64]]:
    """Write a file; returns its stored samples and the right colors, both upright."""
    rng = np.random.default_rng(seed)
    w, h = layout.width, layout.height
    stored, palette = (
        stored_samples(layout, rng, w, h),
        rng.integers(0, 2**16, (2 ** min(layout.bits, 16), 3), np.uint16),
    )
    more = {320: (3, tuple(palette.T.ravel().tolist()))} if layout.color == "palette" else {}
    pages: list[tuple[Values, dict[int, Any]]] = [(stored, more)]
    sub = None
    reduced = {254: (4, (1,))}
    one = OME_IMAGE.format(n=0, w=w, h=h, c=samples_of(layout), z=1, channels="", data="{data}")
    if layout.pages == "two":
        pages.append((stored_samples(layout, rng, w, h), more))
    elif layout.pages == "larger":
        pages.append((stored_samples(layout, rng, 2 * w, 2 * h), more))
    elif layout.pages == "level":
        pages.append((stored_samples(layout, rng, w // 2, h // 2), more | reduced))
    elif layout.pages == "thumbnail":
        pages.append((stored_samples(layout, rng, w // 2, h // 4), more | reduced))
    elif layout.pages == "sub-image":
        sub = [stored_samples(layout, rng, w // 2, h // 2)]
    elif layout.pages == "ome":
        text = OME.format(images=one.format(data='<TiffData IFD="0" PlaneCount="1"/>'))
        pages = [(stored, more | described(layout, text))]
    elif layout.pages == "positions":
        images = "".join(
            OME_IMAGE.format(n=n, w=w, h=h, c=samples_of(layout), z=1, channels="", data=f'<TiffData IFD="{n}"/>')
            for n in range(2)
        )
        pages = [(stored, more | described(layout, OME.format(images=images))), (stored, more)]
    elif layout.pages == "other file":
        data = '<TiffData IFD="0"><UUID FileName="other.ome.tif">urn:uuid:b</UUID></TiffData>'
        pages = [(stored, more | described(layout, OME.format(images=one.format(data=data))))]
    elif layout.pages in ("channels", "fluorescence", "depth"):
        number = 3 if layout.pages == "channels" else 4
        planes = [stored_samples(layout, rng, w, h) for _ in range(number)]
        z, c = (number, 1) if layout.pages == "depth" else (1, number)
        data = f'<TiffData IFD="0" PlaneCount="{number}"/>'
        channels = "".join(f'<Channel ID="Channel:0:{n}" SamplesPerPixel="1"/>' for n in range(c))
        text = OME.format(images=OME_IMAGE.format(n=0, w=w, h=h, c=c, z=z, channels=channels, data=data))
        pages = [(plane, described(layout, text) if n == 0 else {}) for n, plane in enumerate(planes)]
        stored = np.concatenate(planes, axis=2)
        write_tiff(path, layout, pages)
        full = 2.0**layout.bits - 1
        return turned(stored, layout.orientation), turned(stored[..., :3] / full * 255, layout.orientation)
    write_tiff(path, layout, pages, sub)
    return turned(stored, layout.orientation), turned(right_colors(layout, stored, palette), layout.orientation)


# ---- layouts


def random_layout(kind: str, rng: np.random.Generator) -> Layout:
    """A layout of a kind; all that the kind leaves open is random."""

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    color = kind if kind in COLORS else pick("gray", "white is zero", "rgb", "rgb", "palette", "cmyk")
    bits = 8
    if kind.endswith(" bits"):
        bits = int(kind.split()[0])
        color = pick("gray", "white is zero", *(("rgb",) if bits > 1 else ()), *(("palette",) if bits < 16 else ()))
    elif color in ("gray", "white is zero", "rgb"):
        bits = pick(8, 8, 16)
    extra = "none"
    if kind in ("straight", "premultiplied", "unspecified", "untagged"):
        extra, color, bits = kind, pick("gray", "rgb", "rgb"), pick(8, 16)
    compression = pick("none", "lzw", "deflate", "packbits", "zstd")
    if kind in COMPRESSIONS:
        compression = kind
    pages = kind if kind in PAGES else "one"
    if pages in ("channels", "fluorescence", "depth"):
        color, bits = "gray", pick(8, 16)
    if kind in ("webp", "jpeg 2000"):
        color, bits = "rgb" if kind == "webp" else pick("gray", "rgb"), 8
    if kind in ("jpeg", "ycbcr"):
        compression, color, bits = "jpeg", "ycbcr" if kind == "ycbcr" else pick("gray", "rgb"), 8
    if kind in ("32 bits", "float"):
        color, bits = pick("gray", "rgb"), 32
    lossless = compression not in ("webp", "jpeg 2000", "jpeg")
    return Layout(
        color=color,
        bits=bits,
        float_=kind == "float",
        extra=extra,
        planar=bool(rng.integers(2)) and lossless and color not in ("palette",) and pages not in PAGES[5:],
        tiled=bool(rng.integers(2)),
        compression=compression,
        predictor=lossless
        and compression not in ("none", "packbits")
        and kind != "float"
        and bits in (8, 16)
        and bool(rng.integers(2)),
        orientation=int(kind.split()[1]) if kind.startswith("orientation") else pick(1, 1, 1, 2, 3, 4, 5, 6, 7, 8),
        big_endian=bool(rng.integers(2)),
        big=bool(rng.integers(2)) and not rng.integers(3),
        pages=pages,
        unit={"no unit": 1, "inch": 2, "centimeter": 3}.get(kind),
        width=int(rng.integers(17, 60)),
        height=int(rng.integers(17, 60)),
    )


PAGES = (
    "two",
    "larger",
    "level",
    "thumbnail",
    "sub-image",
    "ome",
    "positions",
    "other file",
    "channels",
    "fluorescence",
    "depth",
)
KINDS = (
    *("gray", "white is zero", "rgb", "palette", "cmyk", "ycbcr", "float"),
    *(f"{bits} bits" for bits in (1, 2, 4, 8, 10, 12, 14, 16, 32)),
    *("straight", "premultiplied", "unspecified", "untagged"),
    *COMPRESSIONS,
    *(f"orientation {number}" for number in range(1, 9)),
    *("no unit", "inch", "centimeter"),
    *PAGES,
)  # fmt: skip


# ---- comparison


def outcome(path: Path, layout: Layout, seed: int) -> str:
    """``agree``, ``both refuse``, or what is wrong."""
    stored, right = write(path, layout, seed)
    try:
        image: Values | None = read_image(path)
    except ImageReadError:
        image = None
    try:
        with open_slide(path) as slide:
            whole = slide.read_region(0, 0, 0, slide.width, slide.height)
            x, y = slide.width // 3, slide.height // 4
            part = slide.read_region(0, x, y, slide.width // 2, slide.height // 2)
            assert np.array_equal(part, whole[y : y + slide.height // 2, x : x + slide.width // 2])
    except ImageReadError:
        whole = None
    if (image is None) != (whole is None):
        return "one path refuses"
    if layout.refused:
        return "both refuse" if image is None else "read though it cannot be understood"
    if image is None or whole is None:
        return "refused though it is sound"
    if not np.array_equal(image, whole):
        return "image and slide differ"
    tolerance = (
        3 if layout.compression == "jpeg" else 1.51 if layout.color == "cmyk" or layout.extra != "none" else 0.501
    )
    if image.shape != right.shape or np.abs(image - right).max() > tolerance:
        return "differs from what was written"
    with TiffImage(path) as tiff:
        values = tiff.values(0, 0, 0, *tiff.sizes[0])
    if layout.compression != "jpeg" and not np.array_equal(values, stored):
        return "other samples than were written"
    expected = {1: None, 2: None, 3: 0.5}.get(layout.unit or 0)
    if layout.unit is not None and image_mpp(path) != (1.27 if layout.unit == 2 else expected):
        return "other pixel size than was written"
    return "agree"


def gdal_agrees(path: Path, layout: Layout) -> bool | None:
    """Whether GDAL decodes the same samples; None where it cannot, or converts colors by itself."""
    if layout.color in ("cmyk", "ycbcr") or layout.compression == "jpeg" or layout.pages == "channels":
        return None
    try:
        with rasterio.open(path) as raster:
            bands = raster.read()
    except Exception:
        return None
    with TiffImage(path) as tiff:
        values = tiff.values(0, 0, 0, *tiff.sizes[0])
    return np.array_equal(
        values.astype(np.float64), turned(bands.transpose(1, 2, 0), layout.orientation).astype(np.float64)
    )


def pillow_agrees(path: Path, layout: Layout) -> bool | None:
    """Whether Pillow gives the same colors; None where it cannot, or is known not to apply a tag."""
    if layout.bits > 8 or layout.extra != "none" or layout.orientation != 1 or layout.pages == "channels":
        return None
    try:
        with Image.open(path) as image:
            colors = np.asarray(image.convert("RGB"))
    except Exception:
        return None
    return bool(np.abs(read_image(path).astype(int) - colors).max() <= (3 if layout.compression == "jpeg" else 1))


def files(kinds: tuple[str, ...], number: int) -> Iterator[tuple[str, int, Layout]]:
    for kind in kinds:
        for count in range(number):
            seed = 1000 * KINDS.index(kind) + count
            yield kind, seed, random_layout(kind, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_slide_agree_with_what_was_written_or_both_refuse(tmp_path: Path, kind: str) -> None:
    for _, seed, layout in files((kind,), 3):
        found = outcome(tmp_path / f"{seed}.tif", layout, seed)
        assert found == ("both refuse" if layout.refused else "agree"), layout


@pytest.mark.long
def test_table_of_layouts(tmp_path: Path) -> None:
    columns = ["layout", "files", "agree", "refused by both paths", "wrong", "GDAL agrees", "Pillow agrees"]
    print(f"\n{'layout':16}{'files':>7}{'agree':>7}{'refused':>9}{'wrong':>7}{'GDAL':>14}{'Pillow':>14}")
    rows, total = list[list[str]](), Counter[str]()

    def add(kind: str, counts: Counter[str]) -> None:
        peers = [f"{counts[name]} of {counts[f'of {name}']}" for name in ("GDAL", "Pillow")]
        numbers = [str(counts[name]) for name in ("files", "agree", "both refuse", "wrong")]
        rows.append([kind, *numbers, *peers])
        print(f"{kind:16}{numbers[0]:>7}{numbers[1]:>7}{numbers[2]:>9}{numbers[3]:>7}{peers[0]:>14}{peers[1]:>14}")

    for kind in KINDS:
        counts: Counter[str] = Counter()
        for _, seed, layout in files((kind,), 40):
            path = tmp_path / "file.tif"
            found = outcome(path, layout, seed)
            right = found == ("both refuse" if layout.refused else "agree")
            counts["files"] += 1
            counts[found if right else "wrong"] += 1
            if not right:
                print(f"  {kind}, seed {seed}: {found}: {layout}")
            if found == "agree":
                for name, peer in (("GDAL", gdal_agrees(path, layout)), ("Pillow", pillow_agrees(path, layout))):
                    counts[name] += peer is True
                    counts[f"of {name}"] += peer is not None
        add(kind, counts)
        total += counts
    add("total", total)
    if file := os.environ.get("DIFFERENTIAL_JSON"):
        command = ["-q", "-s", "-m", "long", "tests/microseg/slides/test_differential.py"]
        tables = {"layouts": {"columns": columns, "rows": rows}}
        content = {"provenance": provenance("pytest", command), "tables": tables}
        Path(file).write_text(json.dumps(content, indent=1) + "\n")
    assert not total["wrong"]
