"""The interior of objects, which an instance head learns: how far each pixel lies inside its object."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["MARGIN", "interior_map"]

MARGIN = 4.0
"""Distance from the border, in pixels at the model's scale, at which the interior is complete."""
_SHARE = 0.6  # of the largest distance in an object; the interior of smaller objects is complete there


def interior_map(instances: npt.NDArray[np.integer], margin: float = MARGIN) -> npt.NDArray[np.uint8]:
    """How far each pixel lies inside its object: 0 outside and at its border, rising to 255 at some distance from it.

    The distance is a few pixels, less in small objects, so that every object has an interior; it does not grow with the
    object, so that only a few pixels around an interior have to be given to it.

    Args:
        instances: Label image: 0 is background, each other number one object.
        margin: Distance from the border at which the interior is complete, in pixels.

    Shape:
        (H, W) → (H, W)
    """
    border = np.zeros(instances.shape, np.bool_)
    for axis in (0, 1):
        ahead = np.diff(instances, axis=axis) != 0
        first, last = [slice(None)] * 2, [slice(None)] * 2
        first[axis], last[axis] = slice(0, -1), slice(1, None)
        border[tuple(first)] |= ahead
        border[tuple(last)] |= ahead
    # from the edge of the border's pixels; infinite where no object has a border
    distance = ndimage.distance_transform_edt(~border) + 0.5 if border.any() else np.full(border.shape, np.inf)
    distance = np.where(instances > 0, distance, 0.0)
    numbers, places = np.unique(instances, return_inverse=True)
    deepest = np.ones(len(numbers))
    deepest[:] = ndimage.maximum(distance, places.reshape(instances.shape), np.arange(len(numbers)))
    full = np.minimum(margin, np.maximum(_SHARE * deepest, 1.0))[places.reshape(instances.shape)]
    share = np.where(instances > 0, np.minimum(distance / full, 1.0), 0.0)
    return np.asarray(np.round(255 * share), np.uint8)
