"""Rates of the artifact checks of slides: clean tissue that is taken for pen or for blurred, and what is found.

Slides are made of the images of a lab, each of one image (repeated and turned, so that it is a slide of one
appearance) and some of several: an island of tissue on glass. On each slide pen strokes of four inks are drawn. Focus
is measured in the images as they are, and after a blur. Labs are folders with ``images/`` and ``lab.yaml``; synthetic
labs are added.
"""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.results import ResultFile, argument_parser, markdown_table, table_cells
from microseg.datasets.lab import read_lab_metadata
from microseg.slides.artifacts import FOCUS_MPP, is_out_of_focus, pen_map
from microseg.slides.images import read_image
from microseg.slides.modality import Modality, image_modality
from microseg.slides.tissue import tissue_map
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab

__all__ = ["main"]

_ASSUMED_MPP = 0.25  # of images whose pixel size is not stated
_SIDE_MICRONS = 9000.0  # of a slide
_TISSUE = 0.38  # radius of the island, of the side
_GLASS = 244
_INKS = {"blue": (0.12, 0.25, 0.66), "green": (0.08, 0.5, 0.3), "black": (0.1, 0.1, 0.12), "red": (0.8, 0.1, 0.15)}
_WIDTHS = (300.0, 1500.0)  # microns
_BLURS = (3.0, 5.0)  # standard deviation, in pixels of 0.5 µm
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}

Pixels = npt.NDArray[np.uint8]


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.artifacts", __doc__)
    parser.add_argument("labs", type=Path, nargs="*", help="folders of labs, beside the synthetic ones")
    parser.add_argument("--mpp", type=float, default=16.0, help="microns per pixel of the thumbnail (default: 16)")
    parser.add_argument("--images", type=int, default=40, help="images of a lab, at most (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to this file")
    args = parser.parse_args(arguments)
    file = ResultFile(args.json, "benchmarks.artifacts", arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        made = [
            generate_lab(Path(folder) / lab.name, lab, images=8, size=256, mpp=1.0, labelled=False, seed=0)
            for lab in (LAB_A, LAB_B)
        ]
        for lab in [*args.labs, *made]:
            rows.append(_measure(lab, args))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).astype(object).fillna("–")
    print(markdown_table(table))
    file.write(tables={"artifacts": table_cells(table)})


def _measure(lab: Path, args: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    metadata = read_lab_metadata(lab) if (lab / "lab.yaml").is_file() else None
    mpp = (metadata.mpp if metadata else None) or _ASSUMED_MPP
    files = sorted(path for part in ("images", "test/images", ".") for path in (lab / part).glob("*"))
    files = [path for path in files if path.suffix.lower() in _SUFFIXES]
    chosen = [files[int(index)] for index in np.linspace(0, len(files) - 1, min(args.images, len(files)))]
    images = [read_image(path) for path in chosen]
    stained = sum(image_modality(image) is Modality.STAINED for image in images) > len(images) / 2
    slides = [
        *(_slide([image], mpp, args.mpp, rng, glass=stained) for image in images),
        *(_slide(images[number::8], mpp, args.mpp, rng, glass=stained) for number in range(min(8, len(images)))),
    ]
    clean = []
    for slide in slides:
        tissue = tissue_map(slide).tissue
        clean.append(float((pen_map(slide, tissue, args.mpp) & tissue).sum() / max(1, tissue.sum())))
    row: dict[str, Any] = {
        "lab": f"{lab.parent.name}/{lab.name}" if lab in args.labs else f"synthetic {lab.name}",
        "slides": len(slides),
        "tissue taken for pen": round(float(np.mean(clean)), 4),
        "slides with > 1 % pen": round(float(np.mean(np.array(clean) > 0.01)), 3),
    }
    for name, ink in _INKS.items() if stained else ():
        row[f"{name} found"] = round(float(np.mean([_hit(slide, ink, args.mpp, rng) for slide in slides])), 2)
    row["sharp taken for blurred"] = round(
        float(np.mean([is_out_of_focus(_center(image, mpp)) for image in images])), 3
    )
    for blur in _BLURS:
        blurred = (ndimage.gaussian_filter(_center(image, mpp), (blur, blur, 0)) for image in images)
        row[f"blur of {blur * FOCUS_MPP:g} µm found"] = _share(is_out_of_focus(image) for image in blurred)
    return row


def _share(found: Iterable[bool]) -> float:
    return round(float(np.mean(list(found))), 3)


def _center(image: Pixels, mpp: float) -> Pixels:
    """The center of an image, at the scale at which focus is measured."""
    zoom = min(1.0, mpp / FOCUS_MPP)
    size = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    top, left = (max(0, (length - 256) // 2) for length in scaled.shape[:2])
    return scaled[top : top + 256, left : left + 256]


def _slide(images: list[Pixels], mpp: float, thumbnail_mpp: float, rng: np.random.Generator, *, glass: bool) -> Pixels:
    """Thumbnail of a slide whose tissue shows these images; without glass, where light is not absorbed."""
    side = round(_SIDE_MICRONS / thumbnail_mpp)
    canvas = np.full((side, side, 3), _GLASS, np.uint8)
    small = [_reduced(image, mpp / thumbnail_mpp) for image in images]
    height, width = min(image.shape[0] for image in small), min(image.shape[1] for image in small)
    edge = min(height, width)
    for top in range(0, side, edge):
        for left in range(0, side, edge):
            each = np.rot90(small[int(rng.integers(len(small)))][:edge, :edge], int(rng.integers(4)))
            canvas[top : top + edge, left : left + edge] = each[: side - top, : side - left]
    if glass:
        y, x = np.ogrid[:side, :side]
        canvas[np.hypot(y - side / 2, x - side / 2) > _TISSUE * side] = _GLASS
    return canvas


def _reduced(image: Pixels, zoom: float) -> Pixels:
    size = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _hit(slide: Pixels, ink: tuple[float, ...], mpp: float, rng: np.random.Generator) -> float:
    """Draw a stroke over tissue and glass; returns the share of it that is found."""
    side = slide.shape[0]
    drawn = Image.new("L", (side, side))
    width = max(1, round(rng.uniform(*_WIDTHS) / mpp))
    ImageDraw.Draw(drawn).line(list(_curve(side, rng)), 255, width, "curve")
    stroke = np.asarray(drawn) > 0
    strength = rng.uniform(0.8, 1.3)
    marked = slide.copy()
    marked[stroke] = (slide[stroke] * np.array(ink) ** strength).round().clip(0, 255).astype(np.uint8)
    found = pen_map(marked, tissue_map(marked).tissue, mpp)
    return float((found & stroke).sum() / stroke.sum())


def _curve(side: int, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """A curve across the slide, past the middle of its tissue."""
    x, y, angle = side * rng.uniform(0.1, 0.3), side * rng.uniform(0.3, 0.7), rng.uniform(-0.5, 0.5)
    for _ in range(40):
        yield x, y
        angle += rng.normal(0, 0.15)
        x, y = x + 0.015 * side * np.cos(angle), y + 0.015 * side * np.sin(angle)


if __name__ == "__main__":
    main()
