"""Synthetic slides: pyramids of sections on glass, with outlines of some regions as QuPath exports them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import write_annotation
from microseg.annotations.outlines import OutlineBuilder, mask_polygons
from microseg.datasets.lab import LabMetadata, write_lab_metadata
from microseg.synthetic.labs import Profile, generate_image

__all__ = ["SyntheticSlide", "generate_slide", "generate_slide_lab", "outline_region", "write_pyramid"]

_GLASS = 244
_KINDS = 6  # sections of a slide, which are turned and repeated
_LEVELS = 3
_TILE = 256

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


class SyntheticSlide(NamedTuple):
    """A slide and what it shows.

    Attributes:
        image: RGB, (H, W, 3).
        mask: Class index of each pixel, (H, W).
        tissue: Fields of tissue: left, upper, right and lower edge.
    """

    image: Pixels
    mask: Pixels
    tissue: tuple[Box, ...]


def generate_slide(
    profile: Profile, side: int, mpp: float, seed: int, *, tissue: float = 0.3, block: int = 512
) -> SyntheticSlide:
    """Generate a slide: sections of a lab side by side in an island of tissue, and glass around it.

    Args:
        profile: The lab.
        side: Side of the slide, in pixels.
        mpp: Microns per pixel.
        seed: The same seed gives the same slide.
        tissue: Fraction of the slide that is tissue.
        block: Side of a section, in pixels.
    """
    rng = np.random.default_rng((seed, 11))
    own = profile.vary(rng)
    kinds = [generate_image(own, block, mpp, (seed, 12, number)) for number in range(_KINDS)]
    image, mask = np.full((side, side, 3), _GLASS, np.uint8), np.zeros((side, side), np.uint8)
    across = side // block
    centers = [(x + 0.5, y + 0.5) for y in range(across) for x in range(across)]
    middle = rng.uniform(0.35, 0.65, 2) * across
    order = sorted(centers, key=lambda at: np.hypot(*(np.array(at) - middle)))
    found = []
    for x, y in order[: max(1, round(tissue * (side / block) ** 2))]:
        left, top = int(x) * block, int(y) * block
        kind, turns = kinds[int(rng.integers(_KINDS))], int(rng.integers(4))
        image[top : top + block, left : left + block] = np.rot90(kind[0], turns)
        mask[top : top + block, left : left + block] = np.rot90(kind[1], turns)
        found.append((left, top, left + block, top + block))
    return SyntheticSlide(image, mask, tuple(found))


def write_pyramid(path: Path, image: Pixels, mpp: float | None, *, compression: str | None = "jpeg") -> None:
    """Write a tiled pyramidal TIFF; with the ending ``.svs`` as Aperio's scanners do.

    Args:
        path: The file.
        image: RGB, (H, W, 3).
        mpp: Microns per pixel; None to state none.
        compression: Of tifffile.
    """
    height, width = image.shape[:2]
    stated = "" if mpp is None else f"|MPP = {mpp:g}"
    about = f"Aperio Image Library v11\r\n{width}x{height} [0,0,{width}x{height}] ({_TILE}x{_TILE}){stated}"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        level = image
        for number in range(_LEVELS):
            dots = None if mpp is None else (1e4 / mpp / 2**number,) * 2
            tiff.write(
                level,
                tile=(_TILE, _TILE),
                photometric="rgb",
                compression=compression,
                subfiletype=int(number > 0),
                resolution=dots,
                resolutionunit=None if dots is None else "CENTIMETER",
                metadata=None,
                description=about if path.suffix == ".svs" else None,
            )
            height, width = level.shape[0] // 2, level.shape[1] // 2
            wide = level[: 2 * height, : 2 * width].astype(np.uint16)
            level = ((wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2] + 2) // 4).astype(np.uint8)


def outline_region(builder: OutlineBuilder, mask: Pixels, region: Box, classes: tuple[str, ...]) -> None:
    """Add an annotated region and the outlines of what the mask shows in it."""
    left, top, right, bottom = region
    builder.add("Region*", [[[(left, top), (right, top), (right, bottom), (left, bottom)]]])
    for index, name in enumerate(classes[1:], start=1):
        numbers, count = ndimage.label(mask[top:bottom, left:right] == index)
        for number in range(1, count + 1):
            builder.add(name, mask_polygons(numbers == number, left, top))


def generate_slide_lab(
    folder: Path,
    profile: Profile,
    *,
    slides: int,
    side: int = 2048,
    mpp: float = 1.0,
    tissue: float = 0.3,
    block: int = 512,
    annotated: int = 0,
    regions: int = 2,
    region: int = 400,
    seed: int = 0,
) -> tuple[Pixels, ...]:
    """Write an incoming dataset of slides, some of them with annotated regions.

    Args:
        folder: The folder to create.
        profile: The lab.
        slides: Number of slides.
        side: Side of a slide, in pixels.
        mpp: Microns per pixel.
        tissue: Fraction of a slide that is tissue.
        block: Side of a section, in pixels.
        annotated: Number of slides, the first ones, that have annotated regions.
        regions: Annotated regions of such a slide.
        region: Side of a region, in pixels.
        seed: Seed of everything.

    Returns:
        Mask of each slide.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    write_lab_metadata(
        folder,
        LabMetadata(lab=profile.name, stain=profile.stain, classes=profile.classes, tissue=profile.preparation),
    )
    lab_file = folder / "lab.yaml"
    lines = lab_file.read_text(encoding="utf-8").splitlines(keepends=True)
    lab_file.write_text("".join(line for line in lines if not line.startswith("labelled")), encoding="utf-8")
    masks = []
    for number in range(slides):
        made = generate_slide(profile, side, mpp, 1000 * seed + number, tissue=tissue, block=block)
        name = f"{profile.name}_{number:03d}"
        write_pyramid(folder / "images" / f"{name}.svs", made.image, mpp)
        masks.append(made.mask)
        if number >= annotated:
            continue
        builder = OutlineBuilder()
        margin = (block - region) // 2
        for left, top, *_ in made.tissue[:: max(1, len(made.tissue) // regions)][:regions]:
            x, y = left + margin, top + margin
            outline_region(builder, made.mask, (x, y, x + region, y + region), profile.classes)
        image = AnnotatedImage(f"{name}.svs", side, side, mpp)
        write_annotation(folder / "annotations" / f"{name}.geojson", builder.build(), image)
    return tuple(masks)
