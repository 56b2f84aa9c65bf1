"""Agreement of objects (glands, nuclei) rather than of pixels: the measures of the GlaS contest, and AJI.

Masks here are label images: 0 = background, any other number = one object; `label_objects` makes them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.errors import DataError

__all__ = ["aggregated_jaccard", "label_objects", "object_dice", "object_f1", "object_hausdorff"]

Labels = npt.NDArray[np.integer]
_Boxes = list[tuple[slice, slice]]
_EIGHT_NEIGHBORS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True)
class _Table:
    """Who overlaps whom. Objects are numbered from 0 here.

    Args:
        prediction: (H, W), 0 = background, object i is i + 1.
        reference: (H, W), likewise.
        overlap: (P, R), pixels that predicted and reference objects share.
        predicted: (P,), areas in pixels.
        referred: (R,), areas in pixels.
    """

    prediction: npt.NDArray[np.int64]
    reference: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    referred: npt.NDArray[np.int64]

    @property
    def transposed(self) -> "_Table":
        return _Table(self.reference, self.prediction, self.overlap.T, self.referred, self.predicted)


def label_objects(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Number the connected components (8 neighbors) of a mask, from 1.

    Shape:
        (H, W) → (H, W)
    """
    labels: npt.NDArray[np.int32] = ndimage.label(mask, structure=_EIGHT_NEIGHBORS, output=np.int32)[0]
    return labels


def object_f1(prediction: Labels, reference: Labels) -> float:
    """F1 of finding objects: a predicted object is right if it covers half of its reference object or more.

    The reference object of a predicted one is the one it shares most pixels with; each can be found only once.

    Args:
        prediction: Label image.
        reference: Label image.

    Shape:
        (H, W) twice

    Returns:
        0..1; nan if neither has objects.

    Raises:
        DataError: The sizes differ.

    Reference:
        Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", Medical
        Image Analysis 2017; the three object measures here are those of the contest.
    """
    table = _table(prediction, reference)
    total = len(table.predicted) + len(table.referred)
    if total == 0:
        return float("nan")
    partner = _partners(table)
    found = {
        int(theirs)
        for ours, theirs in enumerate(partner)
        if theirs >= 0 and 2 * table.overlap[ours, theirs] >= table.referred[theirs]
    }
    return 2 * len(found) / total


def object_dice(prediction: Labels, reference: Labels) -> float:
    """Dice of each object with the one it shares most pixels with, weighed by area, averaged over both directions.

    Args:
        prediction: Label image.
        reference: Label image.

    Shape:
        (H, W) twice

    Returns:
        0..1; nan if neither has objects, 0 if only one has.

    Raises:
        DataError: The sizes differ.

    Reference:
        Sirinukunwattana et al., Medical Image Analysis 2017.
    """
    table = _table(prediction, reference)
    if not len(table.predicted) and not len(table.referred):
        return float("nan")
    return (_directed_dice(table) + _directed_dice(table.transposed)) / 2


def object_hausdorff(prediction: Labels, reference: Labels, mpp: float | None = None) -> float:
    """Hausdorff distance of each object to its partner, weighed by area, averaged over both directions.

    The partner is the object it shares most pixels with; without any, the one at the least Hausdorff distance.

    Args:
        prediction: Label image.
        reference: Label image.
        mpp: Microns per pixel; None gives pixels.

    Shape:
        (H, W) twice

    Returns:
        Microns, or pixels; nan if neither has objects, inf if only one has.

    Raises:
        DataError: The sizes differ.

    Reference:
        Sirinukunwattana et al., Medical Image Analysis 2017.
    """
    table = _table(prediction, reference)
    if not len(table.predicted) and not len(table.referred):
        return float("nan")
    if not len(table.predicted) or not len(table.referred):
        return float("inf")
    return (_directed_hausdorff(table) + _directed_hausdorff(table.transposed)) / 2 * (mpp or 1.0)


def aggregated_jaccard(prediction: Labels, reference: Labels) -> float:
    """AJI: summed intersections over summed unions of each reference object and its best partner.

    The partner is the predicted object with the highest intersection over union. Predicted objects that are nobody's
    partner are added to the unions, as are reference objects without one.

    Args:
        prediction: Label image.
        reference: Label image.

    Shape:
        (H, W) twice

    Returns:
        0..1; nan if neither has objects.

    Raises:
        DataError: The sizes differ.

    Reference:
        Kumar et al., "A dataset and a technique for generalized nuclear segmentation", IEEE TMI 2017.
    """
    table = _table(prediction, reference)
    if not len(table.predicted) and not len(table.referred):
        return float("nan")
    intersection, union, used = 0, 0, set()
    for theirs, area in enumerate(table.referred):
        shared = table.overlap[:, theirs]  # (P,)
        if not shared.any():
            union += int(area)
            continue
        unions = table.predicted + area - shared  # (P,)
        ours = int(np.argmax(shared / unions))
        intersection += int(shared[ours])
        union += int(unions[ours])
        used.add(ours)
    union += sum(int(area) for ours, area in enumerate(table.predicted) if ours not in used)
    return intersection / union


def _table(prediction: Labels, reference: Labels) -> _Table:
    if prediction.shape != reference.shape:
        raise DataError(f"expected label images of one size, got {prediction.shape} and {reference.shape}")
    ours, theirs = _renumber(prediction), _renumber(reference)
    rows, columns = int(ours.max(initial=0)) + 1, int(theirs.max(initial=0)) + 1
    pairs = np.bincount((ours * columns + theirs).ravel(), minlength=rows * columns).reshape(rows, columns)
    return _Table(ours, theirs, pairs[1:, 1:], pairs.sum(axis=1)[1:], pairs.sum(axis=0)[1:])


def _renumber(labels: Labels) -> npt.NDArray[np.int64]:
    """Labels 1…n without gaps; 0 stays 0."""
    values, inverse = np.unique(np.append(labels.ravel(), 0), return_inverse=True)
    zero = int(np.searchsorted(values, 0))
    if zero > 0:
        raise DataError(f"expected labels of 0 (background) or more, got {int(values[0])}; number the objects from 1")
    return inverse[:-1].reshape(labels.shape).astype(np.int64)


def _partners(table: _Table) -> npt.NDArray[np.int64]:
    """For each predicted object the reference object it shares most pixels with, or -1."""
    if not len(table.referred):
        return np.full(len(table.predicted), -1, dtype=np.int64)
    return np.where(table.overlap.any(axis=1), table.overlap.argmax(axis=1), -1)


def _directed_dice(table: _Table) -> float:
    score = 0.0
    for ours, theirs in enumerate(_partners(table)):
        if theirs >= 0:
            areas = table.predicted[ours] + table.referred[theirs]
            score += table.predicted[ours] * 2 * table.overlap[ours, theirs] / areas
    return float(score / table.predicted.sum()) if len(table.predicted) else 0.0


def _directed_hausdorff(table: _Table) -> float:
    boxes = ndimage.find_objects(table.prediction), ndimage.find_objects(table.reference)
    total = 0.0
    for ours, theirs in enumerate(_partners(table)):
        distance = _hausdorff(table, boxes, ours, theirs) if theirs >= 0 else _nearest(table, boxes, ours)
        total += table.predicted[ours] * distance
    return float(total / table.predicted.sum())


def _nearest(table: _Table, boxes: tuple[_Boxes, _Boxes], ours: int) -> float:
    """Least Hausdorff distance from one predicted object to any reference object.

    No distance is less than that between corresponding sides of the bounding boxes, which spares most candidates.
    """
    sides = [np.array([[side for axis in box for side in (axis.start, axis.stop)] for box in part]) for part in boxes]
    bounds = np.abs(sides[1] - sides[0][ours]).max(axis=1)  # (R,)
    best = np.inf
    for theirs in np.argsort(bounds):
        if bounds[theirs] >= best:
            break
        best = min(best, _hausdorff(table, boxes, ours, theirs))
    return float(best)


def _hausdorff(table: _Table, boxes: tuple[_Boxes, _Boxes], ours: int, theirs: int) -> float:
    pairs = zip(boxes[0][ours], boxes[1][theirs], strict=True)
    box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
    first, second = table.prediction[box] == ours + 1, table.reference[box] == theirs + 1
    there = ndimage.distance_transform_edt(~second)[first].max()
    back = ndimage.distance_transform_edt(~first)[second].max()
    return float(max(there, back))
