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

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import label

__all__ = [
    "Separation",
    "class_mask",
    "grow_labels",
    "interior_bytes",
    "label_objects",
    "separate_objects",
    "separate_regions",
]

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


def class_mask(probabilities: npt.NDArray[np.float32]) -> Mask:
    """Index of the most probable class at each pixel, of equal ones the first: (K, H, W) → (H, W).

    NumPy's ``argmax`` along the first axis takes many times as long.
    """
    highest, mask = probabilities[0], np.zeros(probabilities.shape[1:], np.uint8)
    for index in range(1, len(probabilities)):
        np.maximum(mask, (probabilities[index] > highest) * np.uint8(index), out=mask)
        highest = np.maximum(highest, probabilities[index])
    return mask


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
    return _in_order(_separate(mask, interior, separation), mask, separation)


def separate_regions(mask: Mask, interior: Mask | None, separation: Separation) -> Labels:
    """As `separate_objects`, but without a smallest area: for rows of an image, which cut objects."""
    return _in_order(_separate(mask, interior, separation), mask, replace(separation, smallest=0.0))


def _separate(mask: Mask, interior: Mask | None, separation: Separation) -> Labels:
    """A number above 0 for each object, in any order."""
    labels, classes = np.zeros(mask.shape, np.int32), np.zeros(256, np.uint8)
    inside = None if interior is None else _smooth(interior) >= _CORE
    for index in separation.classes:
        classes[index] = index
        region = mask == index
        core = region if inside is None else region & inside
        elevation = _smooth(_elevation(core, separation.scale, _SHAPE if inside is None else 0))
        tops = _tops(region * elevation, separation.nearby)
        _add(labels, label(tops, connectivity=1))  # type: ignore[no-untyped-call]
    chosen = classes.take(mask)
    grow_labels(labels, chosen, separation.reach)
    rest = mask - chosen
    if rest.any():
        _add(labels, label_objects(rest))
    return labels


def _add(labels: Labels, others: Labels) -> None:
    """Add labels of other pixels, in place."""
    count = labels.max(initial=0)
    labels += others
    if count:
        labels += (others > 0) * count


def _elevation(core: npt.NDArray[np.bool_], scale: float, least: int) -> Mask:
    """How deep each pixel lies in a core, by the square root of its distance to the border; 0 outside."""
    deepest = _DEEPEST * scale  # pixels of the mask
    squared = _squared_distances(core, int(np.ceil(deepest)))
    rise = np.sqrt(np.minimum(np.sqrt(np.arange(int(squared.max(initial=0)) + 1)), deepest) / scale + 1) - 1
    elevation = np.round(least + _UNITS * rise).astype(np.uint8)  # of each squared distance
    elevation[0] = 0
    return elevation.take(squared)


def _squared_distances(core: npt.NDArray[np.bool_], most: int) -> npt.NDArray[Any]:
    """Squared distance to the nearest pixel outside of a core, up to ``most`` squared; 0 outside. Exact.

    Pixels beyond the image do not count. Most squared is one less where another byte would be needed for it.

    Reference:
        Erosion by a paraboloid, which is one of its rows and one of its columns: van den Boomgaard et al., "Quadratic
        structuring functions in mathematical morphology", ISMM 1996. Its row, the squares, is a chain of erosions of
        three pixels, as these are 1, 1 + 3, 1 + 3 + 5, ...
    """
    kind: Any = np.min_scalar_type(most**2 - 1)
    limit = min(most**2, np.iinfo(kind).max)
    least: npt.NDArray[Any] = core * kind.type(limit)
    for _ in range(2):
        step = 0
        while least.max(initial=0) > (step + 1) ** 2:  # the least distance to a pixel that is more steps away
            step += 1
            raised = np.full_like(least, limit - (2 * step - 1))
            np.minimum(raised, least, out=raised)
            raised += kind.type(2 * step - 1)
            np.minimum(least[1:], raised[:-1], out=least[1:])
            np.minimum(least[:-1], raised[1:], out=least[:-1])
        least = np.ascontiguousarray(least.T)
    return least


def _smooth(values: Mask) -> Mask:
    """Mean of each pixel and its neighbors, weighted 1-2-1 along both axes, several times; exact in whole numbers."""
    for _ in range(_SMOOTHED):
        padded = np.pad(values, 1, mode="edge").astype(np.uint16)
        pairs = padded[1:] + padded[:-1]
        row = (pairs[1:] + pairs[:-1]).ravel()  # in one row: sums of the last and the first pixels are not used
        pairs = row[1:] + row[:-1]
        row[1:-1] = pairs[1:] + pairs[:-1] + np.uint16(8) >> 4
        values = row.reshape(len(values), -1)[:, 1:-1].astype(np.uint8)
    return values


def _tops(values: Mask, steps: int) -> npt.NDArray[np.bool_]:
    """Pixels that rise by half of `_HEIGHT` or more above what is left when all tops are lowered by that height.

    The lowered tops are filled up to the values around them from within some steps, so that a pixel on the slope, on a
    saddle, or on a lower top that is not separated by a deep saddle is not left above them.

    Reference:
        The h-dome transformation: Vincent, "Morphological grayscale reconstruction in image analysis", IEEE TIP 1993,
        with a limited number of steps.
    """
    padded = np.pad(values, 1)
    width = padded.shape[1]
    high = padded.ravel()  # in one row: the margin, which stays 0, lies between the last and the first pixels
    filled = np.maximum(high, _HEIGHT) - np.uint8(_HEIGHT)
    inner = slice(width + 1, -width - 1)
    for _ in range(steps):
        rows = np.maximum(filled[2 * width :], filled[: -2 * width])
        np.maximum(rows, filled[width:-width], out=rows)
        around = np.maximum(rows[2:], rows[:-2])
        np.maximum(around, rows[1:-1], out=around)
        np.minimum(around, high[inner], out=around)
        if np.array_equal(around, filled[inner]):
            break
        filled[inner] = around
    tops: npt.NDArray[np.bool_] = high - filled >= _HEIGHT // 2
    return tops.reshape(padded.shape)[1:-1, 1:-1]


def grow_labels(labels: Labels, mask: Mask, steps: int) -> None:
    """Let labels grow over unlabelled pixels of the same class, in place; see the module for ties.

    Args:
        labels: Number of the object at each pixel; 0 where there is none.
        mask: Classes above 0 where labels may grow.
        steps: Pixels to grow.

    Shape:
        (H, W) each
    """
    padded = np.pad(labels, 1)
    width = padded.shape[1]
    flat, of = padded.ravel(), np.pad(mask, 1).ravel()
    free = of * (flat == 0)  # the class where one may grow
    beside = np.zeros(free.shape, np.uint8)
    beside[width:-width] = free[2 * width :] | free[: -2 * width]
    beside[1:-1] |= free[2:] | free[:-2]
    front = np.flatnonzero((flat > 0) & (of > 0) & (beside > 0))
    for _ in range(steps):
        reached, own, room = [], flat.take(front), of.take(front)
        for step in (width, 1, -1, -width):  # to the pixel below first: it is reached from above
            ahead = front + step
            found = np.flatnonzero(free.take(ahead) == room)
            ahead = ahead.take(found)
            flat[ahead] = own.take(found)
            free[ahead] = 0
            reached.append(ahead)
        front = np.concatenate(reached)
        if not len(front):
            break
    labels[:] = padded[1:-1, 1:-1]


def _in_order(labels: Labels, mask: Mask, separation: Separation) -> Labels:
    """Number the objects anew from 1, in the order of their first pixels, without those that are too small."""
    flat = labels.ravel()
    begins = np.ones(flat.shape, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    starts = np.flatnonzero(begins)  # of runs of equal numbers
    of, lengths = flat.take(starts), np.diff(starts, append=flat.size)
    areas = np.bincount(of, lengths)
    firsts = np.zeros(len(areas), np.intp)
    firsts[of[::-1]] = starts[::-1]  # the last assignment wins: the first pixel
    small = np.isin(mask.ravel().take(firsts), separation.classes) & (areas < separation.smallest_area)
    kept = np.flatnonzero((areas > 0) & ~small)
    kept = kept[kept > 0]
    numbers = np.zeros(len(areas), np.int32)
    numbers[kept[firsts[kept].argsort()]] = np.arange(1, len(kept) + 1)
    return numbers.take(labels)
