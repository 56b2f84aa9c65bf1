"""Specks: regions of a segmentation that are smaller than those of the labelled labs.

A segmenter that a new lab confuses marks many scattered specks. What an object's size may be is known from the labelled
labs' masks and does not change with the stain, so specks are errors that can be told without labels of the new lab.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["remove_specks", "smallest_regions"]

_LEFT_OUT = 0.01  # share of a class's area that lies in its smallest regions, which do not count
_MARGIN = 0.5  # of the smallest region that counts; below it is a speck
_CORNERS = np.ones((3, 3))  # pixels that meet at a corner are of one region


def smallest_regions(masks: Iterable[tuple[npt.NDArray[np.uint8], float]], classes: int) -> tuple[float, ...]:
    """The area below which a region of each class is a speck.

    Args:
        masks: masks of class indices, and the factor by which each is enlarged to the model's scale.
        classes: number of classes K, background among them.

    Shape:
        masks (H, W)

    Returns:
        K areas in pixels at the model's scale. A class without a region that lies wholly inside an image has the
        largest of the others': a hole of a background that never is one.
    """
    found: list[list[float]] = [[] for _ in range(classes)]
    for mask, zoom in masks:
        for label in range(classes):
            regions, count = ndimage.label(mask == label, _CORNERS)
            areas = np.bincount(regions.ravel(), minlength=count + 1).astype(np.float64)
            areas[_at_border(regions)] = 0
            found[label] += [float(area) * zoom**2 for area in areas[1:] if area]
    known = [_MARGIN * _low_quantile(np.sort(areas)) if areas else None for areas in found]
    largest = max((area for area in known if area is not None), default=0.0)
    return tuple(largest if area is None else area for area in known)


def remove_specks(mask: npt.NDArray[np.uint8], smallest: tuple[float, ...], zoom: float = 1.0) -> npt.NDArray[np.uint8]:
    """Give the specks of a mask the class of what lies nearest to them.

    Args:
        mask: class indices.
        smallest: area of each class's smallest region; see `smallest_regions`.
        zoom: factor by which the mask is enlarged to the model's scale.

    Shape:
        (H, W) → (H, W)

    Returns:
        The mask without specks; regions that the border cuts are left, as is a mask that is nothing but specks.
    """
    specks = np.zeros(mask.shape, bool)
    for label, area in enumerate(smallest):
        regions, count = ndimage.label(mask == label, _CORNERS)
        small = np.bincount(regions.ravel(), minlength=count + 1) * zoom**2 < area
        small[_at_border(regions)] = False
        small[0] = False
        specks |= small[regions]
    if specks.all() or not specks.any():
        return mask
    nearest = ndimage.distance_transform_edt(specks, return_distances=False, return_indices=True)
    return np.asarray(mask[tuple(nearest)], np.uint8)


def _low_quantile(areas: npt.NDArray[np.float64]) -> float:
    """The area of the region, from the smallest upwards, at which the share left out is reached."""
    reached = int(np.searchsorted(np.cumsum(areas), _LEFT_OUT * areas.sum()))
    return float(areas[reached])


def _at_border(regions: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Numbers of the regions that touch the image's border, 0 among them."""
    edges = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return np.unique(np.append(edges, 0))
