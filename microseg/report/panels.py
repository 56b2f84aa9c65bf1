"""Panels: segmentations of the same image by several models, side by side."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.annotations.index_masks import read_mask
from microseg.datasets.sampling import evenly_spaced
from microseg.evaluation.label_free import TargetImage
from microseg.evaluation.references import Reference
from microseg.inference.engine import Engine
from microseg.models.separation import class_mask
from microseg.outputs.overlay import draw_overlay, draw_panel
from microseg.slides.region import read_source

__all__ = ["comparison_panels", "data_uri", "reference_panels"]

_HEIGHT = 290  # pixels of an image; three of them fit on a version's page in MLflow


def comparison_panels(
    engines: Mapping[str, Engine], targets: Sequence[TargetImage], classes: Sequence[str], folder: Path
) -> list[Path]:
    """Draw images of a lab beside the segmentation of each engine.

    Args:
        engines: The engines, by the title of their image.
        targets: The images.
        classes: Names of the classes, background first.
        folder: Folder of the panels.

    Returns:
        The files, ``<number>.panel.jpg``.
    """
    return [
        _draw(target.name, read_source(target.image), target.mpp, {}, engines, classes, folder / f"{number}.panel.jpg")
        for number, target in enumerate(targets, 1)
    ]


def reference_panels(
    engines: Mapping[str, Engine],
    references: Sequence[Reference],
    classes: Sequence[str],
    folder: Path,
    *,
    limit: int = 3,
) -> list[Path]:
    """Draw images beside their reference masks and the segmentation of each engine.

    Args:
        engines: The engines, by the title of their image.
        references: Images with masks; they are selected evenly.
        classes: Names of the classes, background first.
        folder: Folder of the panels.
        limit: Number of images.

    Returns:
        The files, ``<image>.panel.jpg``.
    """
    files = []
    for reference in evenly_spaced(references, limit):
        image = read_source(reference.image)
        reference_overlay = {"reference": _overlay(image, read_mask(reference.mask))}
        file = folder / f"{reference.name}.panel.jpg"
        files.append(_draw(reference.name, image, reference.mpp, reference_overlay, engines, classes, file))
    return files


def _draw(
    name: str,
    image: npt.NDArray[np.uint8],
    mpp: float | None,
    further: Mapping[str, npt.NDArray[np.uint8]],
    engines: Mapping[str, Engine],
    classes: Sequence[str],
    file: Path,
) -> Path:
    images = {name: image, **further}
    for title, engine in engines.items():
        images[title] = _overlay(image, class_mask(engine.probabilities(image, mpp)))
    file.parent.mkdir(parents=True, exist_ok=True)
    panel = draw_panel(list(images.values()), list(images), classes=classes, height=_HEIGHT)
    Image.fromarray(panel).save(file, quality=88)
    return file


def _overlay(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Draw an overlay at its size in a panel, so that the width of its lines is not scaled."""
    size = round(_HEIGHT * max(image.shape[:2]) / image.shape[0])
    return draw_overlay(image, mask, least=size, most=size)


def data_uri(image_file: Path) -> str:
    """Return the content of an image file as a ``data:`` URI, for pages without external resources."""
    kind = "png" if image_file.suffix.lower() == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image_file.read_bytes()).decode()}"
