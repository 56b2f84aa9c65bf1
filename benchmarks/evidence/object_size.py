"""Sizes of predicted objects, against those in masks."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from microseg.outputs.objects import label_objects

__all__ = ["typical_object_area"]


def typical_object_area(masks: Iterable[npt.NDArray[np.uint8]]) -> float:
    """Return the area of the typical object of some masks: half of the foreground is of smaller ones.

    Args:
        masks: Class indices; 0 (background) and 255 (ignored) are no objects.

    Shape:
        (H, W) each

    Returns:
        Pixels, the area-weighted median; NaN without objects.
    """
    areas = [np.zeros(0, np.int64)]
    for mask in masks:
        areas.append(np.bincount(label_objects(mask).ravel())[1:])
    found = np.sort(np.concatenate(areas))
    if not len(found):
        return float("nan")
    sums = np.cumsum(found)
    return float(found[int(np.searchsorted(sums, sums[-1] / 2))])
