"""Separation of touching objects: from a mask and the interior that an instance head predicts to numbered objects.

The cores of objects are the pixels of the mask whose interior, smoothed, is at least one half; without such a head the
whole mask.
Seeds are the tops of the distance to the border of the cores: what rises above the highest saddle towards a higher top
nearby. The distance counts by its square root and up to a limit, so that the saddle between large objects has to be
deeper, in pixels, than that between small ones. Each seed grows over the pixels of its class for a limited number of
steps; a pixel that several reach in the same step belongs to the one from above, then left, right, below. What a pixel
belongs to therefore depends only on some rows around it (`context`), and is the same whether a whole image is given or
strips of it. Pixels that no seed reaches, and objects that are too small, are no objects.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import label

__all__ = ["Separation", "grow_labels", "interior_bytes", "label_objects", "separate_objects", "separate_regions"]

Mask = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

_IGNORE = 255  # that of index masks; this file ships with exported models, so it imports nothing of microseg
_CORE = 128  # interior of a core, in 255ths
_DEEPEST = 16  # pixels at the model's scale up to which the distance to the border of a core counts
_NEARBY = 16  # pixels at the model's scale within which a higher top is looked for
_REACH = 32  # pixels at the model's scale that a seed grows at most
_SMOOTHED = 2  # passes of a filter of 3 pixels
_UNITS = 40  # of the elevation in one of sqrt(distance + 1) - 1
_HEIGHT = 32  # of a top above the saddle, in these units
_SHAPE = 100  # the least elevation without a head, in these units: no object of a mask is without a top


@dataclass(frozen=True)
class Separation:
    """Which objects are separated, and how; without classes no object is.

    Attributes:
        classes: Indices of the classes whose touching objects are separated.
        scale: Pixels of the mask per pixel of the model.
        smallest: Area below which there is no object of these classes, in pixels at the model's scale.
        by_shape: Whether objects are told apart by the shape of the mask alone; False where the network predicts their
            interior.
    """

    classes: tuple[int, ...] = ()
    scale: float = 1.0
    smallest: float = 0.0
    by_shape: bool = False

    @property
    def smallest_area(self) -> float:
        """Area below which there is no object, in pixels of the mask."""
        return self.smallest * self.scale**2

    @property
    def nearby(self) -> int:
        """Steps within which a higher top is looked for."""
        return int(np.ceil(_NEARBY * self.scale))

    @property
    def reach(self) -> int:
        """Steps that a seed grows at most."""
        return int(np.ceil(_REACH * self.scale))

    @property
    def context(self) -> int:
        """Rows above and below a row that decide what its pixels belong to."""
        return self.reach + self.nearby + 2 * _SMOOTHED + int(np.ceil(_DEEPEST * self.scale)) + 1


def label_objects(mask: Mask) -> Labels:
    """Number the objects of a mask from 1, in the order of their first pixels, row by row.

    Args:
        mask: Class indices; 0 (background) and 255 (ignored) are not objects.

    Shape:
        (H, W) → (H, W)

    Returns:
        Number of the object at each pixel; 0 where there is none.
    """
    objects = np.where(mask == _IGNORE, 0, mask)
    return np.asarray(label(objects, background=0, connectivity=1), np.int32)  # type: ignore[no-untyped-call]


def interior_bytes(interior: npt.NDArray[np.float32]) -> Mask:
    """The interior in 255ths, as `separate_objects` takes it, from 0..1."""
    return np.asarray((interior * 255 + 0.5).clip(0, 255), np.uint8)


def separate_objects(mask: Mask, interior: Mask | None, separation: Separation) -> Labels:
    """Number the objects of a mask from 1, in the order of their first pixels; touching ones are separated.

    Args:
        mask: Class indices; 0 (background) and 255 (ignored) are not objects.
        interior: How far each pixel lies inside an object, in 255ths; None where objects are told apart by their shape.
        separation: The classes whose objects are separated; those of others are connected regions.

    Shape:
        (H, W) each → (H, W)

    Returns:
        Number of the object at each pixel; 0 where there is none.
    """
    labels = separate_regions(mask, interior, separation)
    areas = np.bincount(labels.ravel())
    classes = np.zeros(len(areas), np.uint8)
    classes[labels.ravel()] = mask.ravel()
    small = np.isin(classes, separation.classes) & (areas < separation.smallest_area)
    return _in_order(np.where(small[labels], 0, labels))


def separate_regions(mask: Mask, interior: Mask | None, separation: Separation) -> Labels:
    """As `separate_objects`, but without a smallest area: for rows of an image, which cut objects."""
    seeds = np.zeros(mask.shape, np.uint8)
    inside = None if interior is None else _smooth(interior) >= _CORE
    for index in separation.classes:
        region = mask == index
        core = region if inside is None else region & inside
        elevation = _smooth(_elevation(core, separation.scale, _SHAPE if inside is None else 0))
        seeds[_tops(np.where(region, elevation, 0).astype(np.uint8), separation.nearby)] = index
    grown = label_objects(seeds)
    count = int(grown.max(initial=0))
    chosen = np.isin(mask, separation.classes)
    grow_labels(grown, np.where(chosen, mask, 0).astype(np.uint8), separation.reach)
    others = label_objects(np.where(chosen, 0, mask).astype(np.uint8))
    return _in_order(np.where(others > 0, others + count, grown))


def _elevation(core: npt.NDArray[np.bool_], scale: float, least: int) -> Mask:
    """How deep each pixel lies in a core, by the square root of its distance to the border; 0 outside."""
    deepest = _DEEPEST * scale  # pixels of the mask
    squared = _squared_distances(core, int(np.ceil(deepest)))
    rise = np.sqrt(np.minimum(np.sqrt(np.arange(squared.max(initial=0) + 1)), deepest) / scale + 1) - 1
    elevation = np.round(least + _UNITS * rise).astype(np.uint8)  # of each squared distance
    elevation[0] = 0
    return np.asarray(elevation[squared], np.uint8)


def _squared_distances(core: npt.NDArray[np.bool_], most: int) -> npt.NDArray[Any]:
    """Squared distance to the nearest pixel outside of a core, up to ``most`` squared; 0 outside. Exact.

    Pixels beyond the image do not count. First the distance in the column, then the least over the columns nearby.

    Reference:
        Saito & Toriwaki, "New algorithms for Euclidean distance transformation of an n-dimensional digitized picture",
        Pattern Recognition 1994, with a limited distance.
    """
    kind: Any = np.uint16 if 2 * most**2 < 2**16 else np.uint32  # holds the sum of two squares
    left, column = core, core.astype(kind)
    for _ in range(most - 1):
        padded = np.pad(left, ((1, 1), (0, 0)), constant_values=True)
        left = padded[:-2] & left & padded[2:]
        if not left.any():
            break
        column += left
    reach, column = int(column.max(initial=0)), column**2
    least = column.copy()
    for step in range(1, min(reach, core.shape[1])):
        np.minimum(least[:, step:], column[:, :-step] + kind(step**2), out=least[:, step:])
        np.minimum(least[:, :-step], column[:, step:] + kind(step**2), out=least[:, :-step])
    return least


def _smooth(values: Mask) -> Mask:
    """Mean of each pixel and its neighbors, weighted 1-2-1 along both axes, several times; exact in whole numbers."""
    for _ in range(_SMOOTHED):
        padded = np.pad(values, 1, mode="edge").astype(np.uint16)
        rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        values = ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:] + 8) >> 4).astype(np.uint8)
    return values


def _tops(values: Mask, steps: int) -> npt.NDArray[np.bool_]:
    """Pixels that rise by half of `_HEIGHT` or more above what is left when all tops are lowered by that height.

    The lowered tops are filled up to the values around them from within some steps, so that a pixel on the slope, on a
    saddle, or on a lower top that is not separated by a deep saddle is not left above them.

    Reference:
        The h-dome transformation: Vincent, "Morphological grayscale reconstruction in image analysis", IEEE TIP 1993,
        with a limited number of steps.
    """
    filled = np.maximum(values, _HEIGHT) - np.uint8(_HEIGHT)
    for _ in range(steps):
        padded, before = np.pad(filled, 1), filled
        rows = np.maximum(np.maximum(padded[:-2], padded[2:]), padded[1:-1])
        filled = np.minimum(np.maximum(np.maximum(rows[:, :-2], rows[:, 2:]), rows[:, 1:-1]), values)
        if np.array_equal(filled, before):
            break
    return values - filled >= _HEIGHT // 2


def grow_labels(labels: Labels, mask: Mask, steps: int) -> None:
    """Let labels grow over unlabelled pixels of the same class, in place; see the module for ties.

    Args:
        labels: Number of the object at each pixel; 0 where there is none.
        mask: Classes above 0 where labels may grow.
        steps: Pixels to grow.

    Shape:
        (H, W) each
    """
    height, width = labels.shape
    padded = np.pad(labels, 1)
    classes = np.pad(mask, 1)
    flat, of = padded.ravel(), classes.ravel()  # views
    front = np.flatnonzero(flat)
    for _ in range(steps):
        reached = []
        for step in (width + 2, 1, -1, -width - 2):  # to the pixel below first: it is reached from above
            ahead = front + step
            free = (flat[ahead] == 0) & (of[ahead] == of[front])
            ahead = ahead[free]
            flat[ahead] = flat[front[free]]
            reached.append(ahead)
        front = np.concatenate(reached)
        if not len(front):
            break
    labels[:] = padded[1 : 1 + height, 1 : 1 + width]


def _in_order(labels: Labels) -> Labels:
    """Number labels anew from 1, in the order of their first pixels."""
    flat = labels.ravel()
    where = np.flatnonzero(flat)[::-1]
    firsts = np.full(int(flat.max(initial=0)) + 1, -1)
    firsts[flat[where]] = where  # the last assignment wins: the first pixel
    present = np.flatnonzero(firsts >= 0)
    numbers = np.zeros(len(firsts), np.int32)
    numbers[present[firsts[present].argsort()]] = np.arange(1, len(present) + 1)
    return numbers[labels]
