"""Raster masks: class indices, one class, object numbers, colors, one page or one file for each class.

What the values mean is stated by ``masks`` and ``palette`` in ``lab.yaml``; class indices by default. Values that do
not fit to it are an error.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.annotations.classes import IGNORE, LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.index_masks import mask_values, read_mask
from microseg.annotations.instance_masks import read_instances
from microseg.annotations.labels import ArrayLabels
from microseg.errors import ImageReadError
from microseg.slides.decoding import FORMATS, read_errors
from microseg.slides.images import IMAGE_SUFFIXES, read_image, read_tiff_values
from microseg.slides.tiff_layout import is_tiff

__all__ = ["RasterMasks", "class_of_file"]


class RasterMasks:
    """The annotation format ``masks``: an image file of the same size for each image, in ``masks/``."""

    folder = "masks"
    suffixes = IMAGE_SUFFIXES

    def can_read(self, file: AnnotationFile, _classes: LabelClasses) -> bool:
        """Accept every image file in the folder."""
        return file.path.suffix.lower() in self.suffixes

    def read(self, file: AnnotationFile, _image: AnnotatedImage, classes: LabelClasses) -> ArrayLabels:
        """Read a mask, as stated by ``classes.masks``."""
        path = file.path
        if class_of_file(path, classes) is not None:
            return _read_class_files(path, classes)
        if classes.masks == "class_pages":
            return ArrayLabels(_join(_pages(path), classes, path))
        if classes.masks == "colors":
            return ArrayLabels(_read_colors(path, classes))
        if classes.masks == "binary":
            return ArrayLabels(_foreground(mask_values(path), path) * _only_class(path, classes))
        if classes.masks == "instances":
            return _read_instances(path, classes)
        return ArrayLabels(read_mask(path))


def class_of_file(path: Path, classes: LabelClasses) -> tuple[str, int] | None:
    """Image and class of a mask of one class: ``<image>_<class>.png``, or ``<class>/<image>.png`` in ``masks/``.

    Args:
        path: A mask.
        classes: The classes, by any of their names.

    Returns:
        Name of the image without suffix, and class index; None where the name ends with no class.
    """
    if path.parent.name != RasterMasks.folder:
        index = classes.index(path.parent.name) if path.parent.parent.name == RasterMasks.folder else None
        return None if index not in range(len(classes.names)) else (path.stem, int(index or 0))
    parts = path.stem.split("_")
    for start in range(1, len(parts)):
        index = classes.index("_".join(parts[start:]))
        if index is not None and 0 <= index < len(classes.names):
            return "_".join(parts[:start]), index
    return None


def _read_class_files(path: Path, classes: LabelClasses) -> ArrayLabels:
    """Read all masks of one class each that belong to the same image."""
    image, _ = class_of_file(path, classes) or ("", 0)
    root = path.parent if path.parent.name == RasterMasks.folder else path.parent.parent
    masks: dict[int, npt.NDArray[np.bool_]] = {}
    for other in sorted(root.rglob("*")):
        found = class_of_file(other, classes) if other.suffix.lower() in IMAGE_SUFFIXES else None
        if found is None or found[0] != image:
            continue
        if found[1] in masks:
            raise ImageReadError(f"expected one mask of each class, got a second one of {classes.names[found[1]]}.")
        masks[found[1]] = _foreground(mask_values(other), other)
    missing = [name for index, name in enumerate(classes.names) if index and index not in masks]
    if missing:
        raise ImageReadError(f"expected a mask of each class, found none of {', '.join(missing)}. Send them all.")
    return ArrayLabels(_join([masks.get(index) for index in range(len(classes.names))], classes, path))


def _join(masks: list[npt.NDArray[np.bool_] | None], classes: LabelClasses, path: Path) -> npt.NDArray[np.uint8]:
    """Class indices of one mask for each class, or for each but the background."""
    if len(masks) == len(classes.names) - 1:
        masks = [None, *masks]
    if len(masks) != len(classes.names):
        raise ImageReadError(
            f"expected a page for each class ({', '.join(classes.names)}), with or without background, got "
            f"{len(masks)} pages. Save them in this order, or one page with 0, 1, 2 …"
        )
    labels: npt.NDArray[np.uint8] | None = None
    for index, mask in enumerate(masks):
        if mask is None:
            continue
        if labels is None:
            labels = np.full(mask.shape, IGNORE, np.uint8)
        if mask.shape != labels.shape:
            raise ImageReadError(f"expected masks of one size, got {labels.shape[::-1]} and {mask.shape[::-1]}.")
        if (twice := int((mask & (labels != IGNORE)).sum())) > 0:
            raise ImageReadError(
                f"expected each pixel to be of one class, got {twice} of {classes.names[index]} and of another one. "
                "Correct the masks."
            )
        labels[mask] = index
    assert labels is not None, path
    if masks[0] is None:
        labels[labels == IGNORE] = 0
    return labels


def _pages(path: Path) -> list[npt.NDArray[np.bool_] | None]:
    """The pages of a TIFF as masks of one class each."""
    if not is_tiff(path):
        return [_foreground(mask_values(path), path)]
    with read_errors(path, "a mask"):
        values, _ = read_tiff_values(path, every_page=True)
    return [_foreground(values[:, :, page], path) for page in range(values.shape[2])]


def _foreground(values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.bool_]:
    """Pixels of the only value beside 0."""
    found = np.unique(values)
    if values.ndim != 2 or len(found[found != 0]) > 1:
        raise ImageReadError(
            f"{path.name}: expected a mask of one class, with 0 and another value, got {_some(found)}. Save it as a "
            "black and white PNG."
        )
    return np.asarray(values != 0)


def _read_colors(path: Path, classes: LabelClasses) -> npt.NDArray[np.uint8]:
    """Class indices by the colors of the palette."""
    if not classes.palette:
        raise ImageReadError("expected a palette in lab.yaml, such as `palette: {background: [0, 0, 0]}`, got none.")
    with Image.open(path, formats=FORMATS) as header:
        if header.format in ("JPEG", "MPO"):
            raise ImageReadError("expected a lossless mask (PNG, TIFF or BMP), got JPEG, which changes colors.")
        transparent = header.has_transparency_data and np.asarray(header.convert("RGBA"))[:, :, 3].min() < 255
    if transparent:
        raise ImageReadError("expected an opaque mask, got transparency. Save it without.")
    pixels = read_image(path).astype(np.int64)
    codes = (pixels[:, :, 0] << 16) + (pixels[:, :, 1] << 8) + pixels[:, :, 2]
    found, places = np.unique(codes, return_inverse=True)
    known = {(r << 16) + (g << 8) + b: name for name, (r, g, b) in classes.palette.items()}
    if unknown := [code for code in found.tolist() if code not in known]:
        counts = np.bincount(places.ravel())[[found.tolist().index(code) for code in unknown]]
        listed = ", ".join(f"#{code:06x} ({count})" for code, count in zip(unknown[:8], counts, strict=False))
        raise ImageReadError(
            f"expected the colors of the palette in lab.yaml, got also {listed} (pixels). Add them to the palette, or "
            "save the mask without smoothed edges."
        )
    values = {**{name: index for index, name in enumerate(classes.names)}, "ignore": IGNORE}
    table = np.array([values[known[code]] for code in found.tolist()], np.uint8)
    return table[places].reshape(codes.shape)


def _read_instances(path: Path, classes: LabelClasses) -> ArrayLabels:
    instances = read_instances(path)
    return ArrayLabels((instances > 0) * _only_class(path, classes), instances)


def _only_class(path: Path, classes: LabelClasses) -> np.uint8:
    if classes.only_class is None:
        raise ImageReadError(
            f"{path.name}: expected one class beside the background, got {len(classes.names) - 1}: this mask does not "
            "state which one an object is of. Send masks of class indices, too, with the numbers in instances/."
        )
    return np.uint8(classes.only_class)


def _some(values: npt.NDArray[Any]) -> str:
    return ", ".join(map(str, values[:8].tolist())) + (f" … ({len(values)} values)" if len(values) > 8 else "")
