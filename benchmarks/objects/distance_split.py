"""Separation without an instance head: connected regions divided at the maxima of the distance to their border."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

__all__ = ["split_by_distance"]

_SMOOTH = 1.5  # pixels
_HEIGHT = 1.0  # of a maximum above the saddle, in pixels


def split_by_distance(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Number the objects of a mask, divided by the watershed of the distance transform.

    Args:
        mask: Class indices.

    Shape:
        (H, W) → (H, W)
    """
    labels = np.zeros(mask.shape, np.int32)
    for index in np.unique(mask[(mask > 0) & (mask < 255)]):
        region = mask == index
        distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(region), _SMOOTH)
        seeds = label(h_maxima(distance, _HEIGHT))  # type: ignore[no-untyped-call]
        found = watershed(-distance, seeds, mask=region)  # type: ignore[no-untyped-call]
        labels = np.where(found > 0, found + labels.max(), labels).astype(np.int32)
    return labels
