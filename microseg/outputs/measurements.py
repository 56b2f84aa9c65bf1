"""Measurements: a table of the objects of a segmentation, and a summary of its image."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from microseg.outputs.outlines import label_objects, outline_objects

__all__ = [
    "OBJECT_COLUMNS",
    "SUMS",
    "ObjectSums",
    "measure_objects",
    "object_classes",
    "sum_objects",
    "summarize_image",
    "tabulate",
]

OBJECT_COLUMNS = (
    "image",
    "label",
    "class",
    "area_px",
    "area_um2",
    "perimeter_px",
    "perimeter_um",
    "centroid_x_px",
    "centroid_y_px",
    "equivalent_diameter_px",
    "equivalent_diameter_um",
    "eccentricity",
    "solidity",
    "mean_probability",
)
SUMS = ("area", "x", "y", "xx", "yy", "xy", "perimeter", "certainty")
"""Columns of `ObjectSums`: pixels, their coordinates and products, length of the border, probability of the class."""
_AREA, _X, _Y, _XX, _YY, _XY, _PERIMETER, _CERTAINTY = range(len(SUMS))

ObjectSums = npt.NDArray[np.float64]
Shares = npt.NDArray[np.floating] | npt.NDArray[np.uint8]

_ROUNDING = 1e-5  # squared pixels: of coordinates up to 100,000 the variance is no better known
_ROWS = 256  # of an image, taken at once
_PIXELS = 2**18  # of an image, whose objects are summed at once


def measure_objects(
    mask: npt.NDArray[np.uint8],
    classes: Sequence[str],
    *,
    image: str = "",
    mpp: float | None = None,
    probabilities: npt.NDArray[np.float32] | None = None,
    labels: npt.NDArray[np.int32] | None = None,
    polygons: npt.NDArray[np.object_] | None = None,
    indices: npt.NDArray[np.uint8] | None = None,
    step: float = 1.0,
) -> pd.DataFrame:
    """Measure every object of a mask.

    Args:
        mask: class indices.
        classes: names of the classes.
        image: name to put into the first column.
        mpp: microns per pixel. None: columns in microns are NaN.
        probabilities: of the classes. None: ``mean_probability`` is NaN.
        labels: from `label_objects`, where already made.
        polygons: from `outline_objects`, where already made.
        indices: from `object_classes`, where already made.
        step: pixels of the image along one of the mask; measurements are in those of the image.

    Shape:
        mask (H, W), probabilities (K, H, W)

    Returns:
        A row for each object, columns ``OBJECT_COLUMNS``: label (its number in the outlines), class, area, perimeter,
        centroid (from the image's top left corner, as the outlines), diameter of the circle of the same area,
        eccentricity of the ellipse with the same second moments (0 = circle), solidity (area over that of the convex
        hull), mean probability of the object's class.

    Reference:
        Perimeter: Benkrid and Crookes 2000, as in scikit-image's ``perimeter``; eccentricity as in ``regionprops``.

    Deviation:
        Solidity takes the convex hull of the outline, scikit-image that of rasterised pixels.
    """
    labels = label_objects(mask) if labels is None else labels
    polygons = outline_objects(labels) if polygons is None else polygons
    indices = object_classes(mask, labels, len(polygons)) if indices is None else indices
    certainty = None
    if probabilities is not None:
        certainty = np.take_along_axis(probabilities, np.minimum(mask, len(classes) - 1)[None], axis=0)[0]
    sums = sum_objects(labels, len(polygons), certainty)
    return tabulate(sums, polygons, indices, classes, image=image, mpp=mpp, step=step)


def sum_objects(
    labels: npt.NDArray[np.int32],
    count: int,
    certainty: Shares | None = None,
    *,
    rows: slice = slice(None),
    top: int = 0,
) -> ObjectSums:
    """Sums over the pixels of each object, of which measurements are made; sums of parts of an object can be added.

    Args:
        labels: from `label_objects`, or of some rows of a larger image.
        count: of the objects.
        certainty: probability of each pixel's class. None: its sum is NaN.
        rows: that are summed; the others are there for the perimeters, which look two pixels around.
        top: number of the first of all the rows in the larger image.

    Shape:
        labels (h, W), certainty (h, W)

    Returns:
        The sums, (count, len(SUMS)).
    """
    sums = np.zeros((count, len(SUMS)), np.float64)
    first, last, _ = rows.indices(len(labels))
    step = max(1, _PIXELS // labels.shape[1])
    for start in range(first, last, step):
        stop = min(last, start + step)
        sums += _sum_rows(labels[start:stop], count, None if certainty is None else certainty[start:stop], top + start)
        around = slice(max(0, start - 2), min(len(labels), stop + 2))
        of = slice(start - around.start, stop - around.start)
        sums[:, _PERIMETER] += _perimeters(labels[around], count, of)
    return sums


def _sum_rows(
    labels: npt.NDArray[np.int32],
    count: int,
    certainty: Shares | None,
    top: int,
) -> ObjectSums:
    where = np.flatnonzero(labels)
    number = labels.ravel()[where] - 1  # object of each foreground pixel
    y, x = (place.astype(np.float64) for place in np.divmod(where, labels.shape[1]))
    y += top
    sums = np.zeros((count, len(SUMS)), np.float64)
    sums[:, _AREA] = np.bincount(number, minlength=count)
    for column, values in ((_X, x), (_Y, y), (_XX, x * x), (_YY, y * y), (_XY, x * y)):
        sums[:, column] = np.bincount(number, values, minlength=count)
    chance = np.full(len(where), np.nan) if certainty is None else certainty.ravel()[where]
    sums[:, _CERTAINTY] = np.bincount(number, chance, minlength=count)
    return sums


def tabulate(
    sums: ObjectSums,
    polygons: npt.NDArray[np.object_],
    indices: npt.NDArray[np.integer],
    classes: Sequence[str],
    *,
    image: str = "",
    mpp: float | None = None,
    step: float = 1.0,
) -> pd.DataFrame:
    """The table of objects, from their sums and outlines; see `measure_objects`.

    Args:
        sums: from `sum_objects`, N objects.
        polygons: N outlines, in the pixels that were summed.
        indices: N, the class index of each object.
        classes: names of the classes.
        image: name to put into the first column.
        mpp: microns per pixel of the image. None: columns in microns are NaN.
        step: pixels of the image along one of those that were summed.
    """
    count, area = len(sums), sums[:, _AREA]
    center_x, center_y = sums[:, _X] / area, sums[:, _Y] / area
    xx = sums[:, _XX] / area - center_x**2
    yy = sums[:, _YY] / area - center_y**2
    xy = sums[:, _XY] / area - center_x * center_y
    scale = np.nan if mpp is None else mpp
    area_px, perimeter = area * step**2, sums[:, _PERIMETER] * step
    diameter = np.sqrt(4 * area_px / np.pi)
    columns = (
        image,
        np.arange(1, count + 1),
        [classes[index] for index in indices],
        area.astype(np.int64) if step == 1 else area_px,
        area_px * scale**2,
        perimeter,
        perimeter * scale,
        (center_x + 0.5) * step,
        (center_y + 0.5) * step,
        diameter,
        diameter * scale,
        _eccentricities(xx, yy, xy),
        area / shapely.area(shapely.convex_hull(polygons)),
        sums[:, _CERTAINTY] / area,
    )
    return pd.DataFrame(dict(zip(OBJECT_COLUMNS, columns, strict=True)), columns=list(OBJECT_COLUMNS))


def summarize_image(
    mask: npt.NDArray[np.uint8],
    classes: Sequence[str],
    *,
    mpp: float | None = None,
    probabilities: npt.NDArray[np.float32] | None = None,
    labels: npt.NDArray[np.int32] | None = None,
    indices: npt.NDArray[np.uint8] | None = None,
) -> dict[str, float]:
    """Figures of a whole image.

    Args:
        mask: class indices.
        classes: names of the classes.
        mpp: microns per pixel; None if unknown.
        probabilities: of the classes; None if not kept.
        labels: from `label_objects`, where already made.
        indices: from `object_classes`, where already made.

    Shape:
        mask (H, W), probabilities (K, H, W)

    Returns:
        ``area_mm2`` of the image; ``objects_<class>`` and ``area_fraction_<class>`` for each class but the background;
        ``mean_confidence``, the mean of the highest probability; ``mean_entropy``, 0 where the network is sure and 1
        where all classes are equally likely. NaN where unknown.
    """
    labels = label_objects(mask) if labels is None else labels
    indices = object_classes(mask, labels, int(labels.max(initial=0))) if indices is None else indices
    objects = np.bincount(indices, minlength=len(classes))
    pixels = np.bincount(mask.ravel(), minlength=len(classes))
    summary = {"area_mm2": np.nan if mpp is None else mask.size * mpp**2 / 1e6}
    for index, name in enumerate(classes[1:], start=1):
        summary[f"objects_{name}"] = int(objects[index])
        summary[f"area_fraction_{name}"] = float(pixels[index] / mask.size)
    confidence, entropy = (np.nan, np.nan) if probabilities is None else _certainty(probabilities)
    return summary | {"mean_confidence": confidence, "mean_entropy": entropy}


def object_classes(mask: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.uint8]:
    """Class index of each of the objects 1 … count, (count,)."""
    indices = np.zeros(count + 1, np.uint8)
    indices[labels.ravel()] = mask.ravel()
    return indices[1:]


def _perimeters(labels: npt.NDArray[np.int32], count: int, rows: slice) -> npt.NDArray[np.float64]:
    """Length of each object's border in some rows: its border pixels, weighted by how many are neighbors and where."""
    padded = np.pad(labels, 1)
    height, width = labels.shape

    def shifted(array: npt.NDArray[np.int32], dy: int, dx: int) -> npt.NDArray[np.int32]:
        return array[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    sides, corners = ((0, 1), (0, -1), (1, 0), (-1, 0)), ((1, 1), (1, -1), (-1, 1), (-1, -1))
    inside = np.ones(labels.shape, np.bool_)
    for side in sides:
        inside &= shifted(padded, *side) == labels
    border = np.pad(np.where(inside, 0, labels), 1)  # the object's number on its border, else 0
    first = rows.indices(height)[0]
    where = np.nonzero(border[1:-1][rows])
    where = (where[0] + first + 1, where[1])
    own = border[where]

    def neighbors(places: tuple[tuple[int, int], ...]) -> npt.NDArray[np.int64]:
        same = [border[where[0] + dy, where[1] + dx] == own for dy, dx in places]
        return np.asarray(np.sum(same, axis=0), np.int64)

    beside, across = neighbors(sides), neighbors(corners)
    code = 1 + 2 * beside + 10 * across
    length = np.zeros(50)
    length[[5, 7, 15, 17, 25, 27]] = 1
    length[[21, 33]] = np.sqrt(2)
    length[[13, 23]] = (1 + np.sqrt(2)) / 2
    return np.asarray(np.bincount(own - 1, length[code], minlength=count), np.float64)


def _eccentricities(
    xx: npt.NDArray[np.float64], yy: npt.NDArray[np.float64], xy: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = middle + spread, np.maximum(middle - spread, 0)
    roundness = np.divide(short, long, out=np.ones_like(long), where=long > _ROUNDING)
    return np.asarray(np.sqrt(1 - roundness), np.float64)


def _certainty(probabilities: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Mean highest probability and mean entropy over log K, a few rows at a time."""
    classes, height, width = probabilities.shape
    highest = entropy = 0.0
    for top in range(0, height, _ROWS):
        rows = probabilities[:, top : top + _ROWS]  # (K, rows, W)
        highest += float(rows.max(axis=0).sum(dtype=np.float64))
        entropy -= float((rows * np.log(np.maximum(rows, 1e-12))).sum(dtype=np.float64))
    return highest / (height * width), entropy / (height * width * np.log(classes))
