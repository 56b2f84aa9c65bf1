"""Pictures of several segmenters on the same images, side by side."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import LabDataset
from microseg.evaluation.label_free import lab_targets
from microseg.evaluation.references import Reference
from microseg.inference.engine import Engine
from microseg.outputs.overlay import draw_overlay, draw_panel
from microseg.slides.images import read_image

__all__ = ["comparison_panels", "data_uri", "reference_panels"]

_HEIGHT = 290  # pixels of one picture: three beside each other fit on a version's page in MLflow


def comparison_panels(engines: Mapping[str, Engine], lab: LabDataset, folder: Path, *, limit: int = 4) -> list[Path]:
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
        _draw(target.name, read_image(target.image), target.mpp, {}, engines, lab.metadata.classes, folder)
        for target in lab_targets(lab, limit)
    ]


def reference_panels(
    engines: Mapping[str, Engine],
    references: Sequence[Reference],
    classes: Sequence[str],
    folder: Path,
    *,
    limit: int = 3,
) -> list[Path]:
    """The same for images with reference masks, which are drawn beside the image.

    Args:
        engines: by the title of their picture.
        references: images with masks; so many of them are shown, spread evenly.
        classes: names of the classes, the background first.
        folder: where the pictures are written.
        limit: number of images.

    Returns:
        The files, ``<image>.panel.jpg``.
    """
    picks = np.linspace(0, len(references) - 1, min(limit, len(references))).round().astype(int)
    files = []
    for reference in (references[int(pick)] for pick in picks):
        image = read_image(reference.image)
        known = {"reference": _overlay(image, read_mask(reference.mask))}
        files.append(_draw(reference.name, image, reference.mpp, known, engines, classes, folder))
    return files


def _draw(
    name: str,
    image: npt.NDArray[np.uint8],
    mpp: float | None,
    known: Mapping[str, npt.NDArray[np.uint8]],
    engines: Mapping[str, Engine],
    classes: Sequence[str],
    folder: Path,
) -> Path:
    pictures = {name: image, **known}
    for title, engine in engines.items():
        pictures[title] = _overlay(image, engine.probabilities(image, mpp).argmax(0).astype(np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.panel.jpg"
    panel = draw_panel(list(pictures.values()), list(pictures), classes=classes, height=_HEIGHT)
    Image.fromarray(panel).save(file, quality=88)
    return file


def _overlay(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """At the size that it has in a panel, so that its lines stay as wide as they are drawn."""
    size = round(_HEIGHT * max(image.shape[:2]) / image.shape[0])
    return draw_overlay(image, mask, least=size, most=size)


def data_uri(picture: Path) -> str:
    """A picture's file as a ``data:`` address, for pages that stand alone."""
    kind = "png" if picture.suffix.lower() == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
