"""Region rules: smallest size and obligatory neighbors of regions, estimated from the masks of the source labs.

Typical errors in a lab with another stain are scattered specks and impossible objects, for example cytoplasm without a
nucleus. How small a region can be, and which other class it always touches, does not depend on the stain, so such
errors can be detected without labels of the target lab.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from microseg.annotations.index_masks import IGNORE

__all__ = ["RegionRules", "most_probable", "plausible_labels", "region_rules", "remove_implausible"]

_OUTLIERS = 0.01  # fraction of a class's area, in its smallest regions, that is not counted
_HALF = 0.5  # of a class's area
_MARGIN = 0.5  # times the smallest counted region: anything below is a speck
_ALWAYS = 0.98  # fraction of a class's area in regions that touch another class
_MIN_REGIONS = 10  # for a rule on neighbors
_CORNERS = np.ones((3, 3), bool)  # pixels that meet at a corner are connected

Mask = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class RegionRules:
    """Properties of the regions of each class.

    Attributes:
        smallest: Area below which a region is a speck, in pixels at the model's scale.
        typical: Area-weighted median area of the regions; 0 where unknown.
        touches: Other classes that a region always touches; without the background.
    """

    smallest: tuple[float, ...] = ()
    typical: tuple[float, ...] = ()
    touches: tuple[tuple[int, ...], ...] = ()

    def for_lab(self, masks: Iterable[Mask], zoom: float) -> "RegionRules":
        """Scale the smallest areas down for a lab whose typical regions are smaller.

        Otherwise a wrongly estimated scale, or finer tissue, would turn a lab's objects into specks.

        Args:
            masks: Segmentations of the lab's images, (H, W) each.
            zoom: Factor that enlarges the images to the model's scale.
        """
        areas: list[list[npt.NDArray[np.floating]]] = [[np.zeros(0)] for _ in self.smallest]
        for mask in masks:
            for label, each in enumerate(areas):
                regions, sizes = _regions(mask == label)
                each.append(sizes[_inside(regions, sizes)] * zoom**2)
        found = [np.concatenate(each) for each in areas]
        factors = [
            min(1.0, _quantile(each, _HALF) / known) if known and len(each) else 1.0
            for each, known in zip(found, self.typical, strict=True)
        ]
        smallest = tuple(area * factor for area, factor in zip(self.smallest, factors, strict=True))
        return RegionRules(smallest, self.typical, self.touches)


def region_rules(masks: Iterable[tuple[Mask, float]], classes: int) -> RegionRules:
    """Estimate region rules from masks; regions that the image border cuts do not count.

    Args:
        masks: Masks of class indices, and the factor that enlarges each to the model's scale.
        classes: Number of classes K, including the background.

    Shape:
        masks (H, W)

    Returns:
        The rules. A class without any region completely inside an image gets the largest of the smallest areas of the
        other classes, and no neighbor.
    """
    areas: list[list[npt.NDArray[np.floating]]] = [[np.zeros(0)] for _ in range(classes)]
    touching = [[np.zeros((0, classes), bool)] for _ in range(classes)]
    for mask, zoom in masks:
        for label in range(classes):
            regions, sizes = _regions(mask == label)
            inside = _inside(regions, sizes)
            areas[label].append(sizes[inside] * zoom**2)
            touching[label].append(_touched(mask, regions, len(sizes), classes)[inside])
    found = [np.concatenate(each) for each in areas]
    known = [_MARGIN * _quantile(each, _OUTLIERS) if len(each) else None for each in found]
    largest = max((area for area in known if area is not None), default=0.0)
    return RegionRules(
        tuple(largest if area is None else area for area in known),
        tuple(_quantile(each, _HALF) if len(each) else 0.0 for each in found),
        tuple(_always(found[label], np.concatenate(touching[label]), label) for label in range(classes)),
    )


def remove_implausible(mask: Mask, rules: RegionRules, zoom: float = 1.0) -> Mask:
    """Replace regions that violate the rules by the class of the nearest other pixel.

    Args:
        mask: Class indices.
        rules: Properties of regions.
        zoom: Factor that enlarges the mask to the model's scale.

    Shape:
        (H, W) → (H, W)

    Returns:
        The mask without such regions. The size of regions that the image border cuts is unknown, so they are not
        specks; where they lack a neighbor, which may be outside the image, they become 255 (ignored). A mask that
        consists only of such regions is not changed.
    """
    cleaned = _replaced(mask, _specks(mask, rules, zoom))
    inside, at_border = _without_neighbors(cleaned, rules)
    cleaned = _replaced(cleaned, inside)
    return np.where(at_border, np.uint8(IGNORE), cleaned) if at_border.any() else cleaned


def most_probable(probabilities: Sequence[Tensor]) -> list[Mask]:
    """Most probable class of each pixel: (K, H, W) → (H, W), each."""
    return [each.max(0).indices.numpy().astype(np.uint8) for each in probabilities]  # faster than argmax


def plausible_labels(probabilities: Sequence[Tensor], rules: RegionRules, zoom: float) -> list[Mask]:
    """Most probable class of each pixel of a lab's images, without regions that violate the rules.

    Args:
        probabilities: Class probabilities of all images of the lab, on the CPU; they also state how large its typical
            regions are.
        rules: Properties of regions.
        zoom: Factor that enlarges the images to the model's scale.

    Shape:
        (K, H, W) → (H, W), each
    """
    masks = most_probable(probabilities)
    rules = rules.for_lab(masks, zoom)
    return [remove_implausible(mask, rules, zoom) for mask in masks]


def _specks(mask: Mask, rules: RegionRules, zoom: float) -> Pixels:
    specks = np.zeros(mask.shape, bool)
    for label, area in enumerate(rules.smallest):
        regions, sizes = _regions(mask == label)
        small = sizes * zoom**2 < area
        small[0] = False
        small[_at_border(regions)] = False
        specks |= small[regions]
    return specks


def _without_neighbors(mask: Mask, rules: RegionRules) -> tuple[Pixels, Pixels]:
    """Regions without their obligatory neighbors: those inside the image, and those that its border cuts."""
    inside, cut = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    for label, neighbors in enumerate(rules.touches):
        if neighbors:
            regions, sizes = _regions(mask == label)
            touched = _touched(mask, regions, len(sizes), len(rules.touches))[:, list(neighbors)]
            isolated = (sizes > 0) & ~touched.all(axis=1)
            border = np.zeros(len(sizes), bool)
            border[_at_border(regions)] = True
            inside |= (isolated & ~border)[regions]
            cut |= (isolated & border)[regions]
    return inside, cut


def _replaced(mask: Mask, wrong: Pixels) -> Mask:
    if wrong.all() or not wrong.any():
        return mask
    nearest = ndimage.distance_transform_edt(wrong, return_distances=False, return_indices=True)
    return np.asarray(mask[tuple(nearest)], np.uint8)


def _regions(chosen: Pixels) -> tuple[Labels, npt.NDArray[np.intp]]:
    """Regions numbered from 1, and their areas in pixels; the area of number 0, everything else, is 0."""
    regions, count = ndimage.label(chosen, _CORNERS)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[0] = 0
    return regions, sizes


def _touched(mask: Mask, regions: Labels, count: int, classes: int) -> Pixels:
    """Whether each region touches each class: (count, classes)."""
    touched = np.zeros((count, classes), bool)
    for label in range(classes):
        dilated = ndimage.binary_dilation(mask == label, _CORNERS)
        touched[np.unique(regions[dilated]), label] = True
    return touched


def _always(areas: npt.NDArray[np.floating], touching: Pixels, label: int) -> tuple[int, ...]:
    """Other classes, without the background, that almost all of the area of a class touches."""
    if label == 0 or len(areas) < _MIN_REGIONS:
        return ()
    fractions = areas @ touching / areas.sum()  # (K,)
    return tuple(int(other) for other in np.flatnonzero(fractions >= _ALWAYS) if other not in (0, label))


def _quantile(areas: npt.NDArray[np.floating], fraction: float) -> float:
    """Area-weighted quantile: the area at which the sorted areas reach a fraction of their sum."""
    areas = np.sort(areas)
    return float(areas[int(np.searchsorted(np.cumsum(areas), fraction * areas.sum()))])


def _inside(regions: Labels, sizes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Numbers of the regions completely inside the image."""
    return np.setdiff1d(np.flatnonzero(sizes), _at_border(regions))


def _at_border(regions: Labels) -> Labels:
    """Numbers of the regions that touch the image's border."""
    edges = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return np.setdiff1d(edges, 0)
