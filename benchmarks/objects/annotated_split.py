"""What a perfect separation makes of a mask: the pixels of each region go to the annotated objects."""

import numpy as np
import numpy.typing as npt
from skimage.segmentation import watershed

from microseg.models.separation import label_objects

__all__ = ["split_as_annotated"]


def split_as_annotated(
    mask: npt.NDArray[np.uint8], annotated: npt.NDArray[np.int32], smallest: float
) -> npt.NDArray[np.int32]:
    """Number the objects of a mask of one class: a pixel belongs to the annotated object that is nearest in the mask.

    Regions of the mask without an annotated object are objects, too: whether they are nuclei is not a question of
    separation. Annotated objects outside of the mask are missing.

    Args:
        mask: Class indices.
        annotated: Number of the annotated object at each pixel; 0 where there is none.
        smallest: Area in pixels below which there is no object.

    Shape:
        (H, W) each → (H, W)
    """
    region = (mask > 0) & (mask < 255)
    labels = watershed(np.zeros(mask.shape), np.where(region, annotated, 0), mask=region)  # type: ignore[no-untyped-call]
    others = label_objects(np.where(labels > 0, 0, mask))
    labels = np.where(others > 0, others + labels.max(initial=0), labels)
    return np.where(np.bincount(labels.ravel())[labels] < smallest, 0, labels).astype(np.int32)
