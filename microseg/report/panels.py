"""Pictures of several segmenters on the same images, side by side."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from microseg.data.dataset import Lab
from microseg.data.images import read_image, read_mask
from microseg.evaluation import Reference, lab_targets
from microseg.inference import Engine, draw_overlay

__all__ = ["comparison_panels", "data_uri", "draw_panel", "reference_panels"]

_SIDE = 384  # pixels of one picture
_TITLE = 28
_GAP = 8


def comparison_panels(engines: Mapping[str, Engine], lab: Lab, folder: Path, *, limit: int = 4) -> list[Path]:
    """Draw a lab's image, and what each engine finds in it, beside one another.

    Args:
        engines: by the title of their picture.
        lab: whose images are shown, spread over its manifest.
        folder: where the pictures are written.
        limit: number of images.

    Returns:
        The files, ``<image>.panel.jpg``.
    """
    return [
        _draw(target.name, read_image(target.image), target.mpp, {}, engines, folder)
        for target in lab_targets(lab, limit)
    ]


def reference_panels(
    engines: Mapping[str, Engine], references: Sequence[Reference], folder: Path, *, limit: int = 3
) -> list[Path]:
    """The same for images with reference masks, which are drawn beside the image.

    Args:
        engines: by the title of their picture.
        references: images with masks; so many of them are shown, spread evenly.
        folder: where the pictures are written.
        limit: number of images.

    Returns:
        The files, ``<image>.panel.jpg``.
    """
    picks = np.linspace(0, len(references) - 1, min(limit, len(references))).round().astype(int)
    files = []
    for reference in (references[int(pick)] for pick in picks):
        image = read_image(reference.image)
        known = {"reference": draw_overlay(image, read_mask(reference.mask))}
        files.append(_draw(reference.name, image, reference.mpp, known, engines, folder))
    return files


def _draw(
    name: str,
    image: npt.NDArray[np.uint8],
    mpp: float | None,
    known: Mapping[str, npt.NDArray[np.uint8]],
    engines: Mapping[str, Engine],
    folder: Path,
) -> Path:
    pictures = {name: image, **known}
    for title, engine in engines.items():
        pictures[title] = draw_overlay(image, engine.probabilities(image, mpp).argmax(0).astype(np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.panel.jpg"
    draw_panel(list(pictures.values()), list(pictures)).save(file, quality=88)
    return file


def draw_panel(pictures: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str]) -> Image.Image:
    """Pictures in a row, each with its title above.

    Args:
        pictures: RGB, of one shape; all are brought to one size.
        titles: of each.

    Shape:
        (H, W, 3) each
    """
    shrunk = [Image.fromarray(picture) for picture in pictures]
    factor = _SIDE / max(shrunk[0].size)
    size = (round(shrunk[0].width * factor), round(shrunk[0].height * factor))
    shrunk = [picture.resize(size, Image.Resampling.LANCZOS) for picture in shrunk]
    panel = Image.new("RGB", (len(shrunk) * (size[0] + _GAP) - _GAP, size[1] + _TITLE), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(15)
    for number, (picture, title) in enumerate(zip(shrunk, titles, strict=True)):
        left = number * (size[0] + _GAP)
        draw.text((left, 6), title, fill="#222222", font=font)
        panel.paste(picture, (left, _TITLE))
    return panel


def data_uri(picture: Path) -> str:
    """A picture's file as a ``data:`` address, for pages that stand alone."""
    kind = "png" if picture.suffix.lower() == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
