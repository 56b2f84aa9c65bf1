"""Corrections of labels that a dataset has: new labels where they are known, the earlier ones elsewhere."""

import numpy as np
import numpy.typing as npt

from microseg.annotations.classes import IGNORE
from microseg.annotations.labels import LabelRegion

__all__ = ["merge_labels", "renumber"]


def merge_labels(earlier: LabelRegion, new: LabelRegion) -> LabelRegion | None:
    """Merge labels with those of the dataset, which are kept where the new ones are not known.

    An object that a corrected region cuts keeps its part outside of it, as another object.

    Args:
        earlier: Labels of the dataset.
        new: Labels of the same size.

    Returns:
        The merged labels, with numbered objects; None where nothing changes.
    """
    before = _number(earlier.classes) if earlier.instances is None else earlier.instances
    numbers = _number(new.classes) if new.instances is None else new.instances
    known = new.classes != IGNORE
    merged = np.where(known, new.classes, earlier.classes)
    numbers = renumber(np.where(known, np.where(numbers > 0, numbers + before.max(), 0), before))
    if np.array_equal(merged, earlier.classes) and np.array_equal(numbers, renumber(before)):
        return None
    return LabelRegion(merged, numbers)


def renumber(numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Number objects in the order of their first pixels, row by row."""
    found, first, places = np.unique(np.append(0, numbers), return_index=True, return_inverse=True)
    table = np.zeros(len(found), np.int32)
    table[first.argsort()] = np.arange(len(found))
    return table[places[1:]].reshape(numbers.shape)


def _number(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Number the regions of a mask of class indices; pixels that meet at an edge are connected."""
    from skimage.measure import label

    classes = np.where(mask == IGNORE, 0, mask)
    return np.asarray(label(classes, background=0, connectivity=1), np.int32)  # type: ignore[no-untyped-call]
