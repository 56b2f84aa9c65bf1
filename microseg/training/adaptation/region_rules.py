"""What regions of a segmentation can be like, known from the labelled labs' masks: their size and their neighbors.

A segmenter that a new lab confuses marks scattered specks, and objects of a kind that only the new lab has: cytoplasm
without a nucleus, for example. How small a region can be, and which other class it always touches, does not change
with the stain, so such errors can be told without labels of the new lab.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from microseg.annotations.index_masks import IGNORE

__all__ = ["RegionRules", "most_probable", "plausible_labels", "region_rules", "remove_implausible"]

_LEFT_OUT = 0.01  # share of a class's area that lies in its smallest regions, which do not count
_HALF = 0.5  # of a class's area
_MARGIN = 0.5  # of the smallest region that counts; below it is a speck
_ALWAYS = 0.98  # of a class's area: in regions that touch a certain other class
_ENOUGH = 10  # regions, to speak of always
_CORNERS = np.ones((3, 3), bool)  # pixels that meet at a corner are of one region


@dataclass(frozen=True)
class RegionRules:
    """What the regions of each class are like.

    Attributes:
        smallest: area in pixels at the model's scale, below which a region is a speck.
        typical: area of the region in whose like half of the class's area lies; 0 where that is not known.
        touches: the other classes that a region always touches; neither of the background nor the background.
    """

    smallest: tuple[float, ...] = ()
    typical: tuple[float, ...] = ()
    touches: tuple[tuple[int, ...], ...] = ()

    def for_lab(self, masks: Iterable[npt.NDArray[np.uint8]], zoom: float) -> "RegionRules":
        """The rules for a lab whose regions are typically smaller: what is small is smaller there in proportion.

        So a scale that was found wrongly, or finer tissue, does not make specks of a lab's objects.

        Args:
            masks: segmentations of the lab's images as they are, (H, W) each.
            zoom: factor by which they are enlarged to the model's scale.
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


def region_rules(masks: Iterable[tuple[npt.NDArray[np.uint8], float]], classes: int) -> RegionRules:
    """Learn from masks what regions are like; regions that the border cuts do not count.

    Args:
        masks: masks of class indices, and the factor by which each is enlarged to the model's scale.
        classes: number of classes K, background among them.

    Shape:
        masks (H, W)

    Returns:
        The rules. A class without a region that lies wholly inside an image has the largest of the others' smallest
        areas, as a hole in what never has one, and no neighbor.
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
    known = [_MARGIN * _quantile(each, _LEFT_OUT) if len(each) else None for each in found]
    largest = max((area for area in known if area is not None), default=0.0)
    return RegionRules(
        tuple(largest if area is None else area for area in known),
        tuple(_quantile(each, _HALF) if len(each) else 0.0 for each in found),
        tuple(_always(found[label], np.concatenate(touching[label]), label) for label in range(classes)),
    )


def remove_implausible(mask: npt.NDArray[np.uint8], rules: RegionRules, zoom: float = 1.0) -> npt.NDArray[np.uint8]:
    """Give regions that break the rules the class of what lies nearest to them.

    Args:
        mask: class indices.
        rules: what regions are like.
        zoom: factor by which the mask is enlarged to the model's scale.

    Shape:
        (H, W) → (H, W)

    Returns:
        The mask without such regions. Of those that the border cuts the size says nothing, and a missing neighbor
        may lie beyond it: these become 255, ignored. A mask that is nothing but such regions is left.
    """
    cleaned = _replaced(mask, _specks(mask, rules, zoom))
    wrong, open_ended = _alone(cleaned, rules)
    cleaned = _replaced(cleaned, wrong)
    return np.where(open_ended, np.uint8(IGNORE), cleaned) if open_ended.any() else cleaned


def most_probable(probabilities: Sequence[Tensor]) -> list[npt.NDArray[np.uint8]]:
    """The most probable class of each pixel: (K, H, W) → (H, W), each."""
    return [each.max(0).indices.numpy().astype(np.uint8) for each in probabilities]  # faster than argmax


def plausible_labels(probabilities: Sequence[Tensor], rules: RegionRules, zoom: float) -> list[npt.NDArray[np.uint8]]:
    """The most probable class of each pixel of a lab's images, without regions that break the rules.

    Args:
        probabilities: of the classes, on the CPU; all images together say how large the lab's regions are.
        rules: what regions are like.
        zoom: factor by which the images are enlarged to the model's scale.

    Shape:
        (K, H, W) → (H, W), each
    """
    masks = most_probable(probabilities)
    rules = rules.for_lab(masks, zoom)
    return [remove_implausible(mask, rules, zoom) for mask in masks]


def _specks(mask: npt.NDArray[np.uint8], rules: RegionRules, zoom: float) -> npt.NDArray[np.bool_]:
    specks = np.zeros(mask.shape, bool)
    for label, area in enumerate(rules.smallest):
        regions, sizes = _regions(mask == label)
        small = sizes * zoom**2 < area
        small[0] = False
        small[_at_border(regions)] = False
        specks |= small[regions]
    return specks


def _alone(mask: npt.NDArray[np.uint8], rules: RegionRules) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Regions without the neighbors that they always have: those inside the image, and those that its border cuts."""
    inside, cut = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    for label, wanted in enumerate(rules.touches):
        if wanted:
            regions, sizes = _regions(mask == label)
            touched = _touched(mask, regions, len(sizes), len(rules.touches))[:, list(wanted)]
            alone = (sizes > 0) & ~touched.all(axis=1)
            border = np.zeros(len(sizes), bool)
            border[_at_border(regions)] = True
            inside |= (alone & ~border)[regions]
            cut |= (alone & border)[regions]
    return inside, cut


def _replaced(mask: npt.NDArray[np.uint8], wrong: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    if wrong.all() or not wrong.any():
        return mask
    nearest = ndimage.distance_transform_edt(wrong, return_distances=False, return_indices=True)
    return np.asarray(mask[tuple(nearest)], np.uint8)


def _regions(chosen: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
    """Numbered from 1, and the area in pixels of each; that of 0, everything else, is given as 0."""
    regions, count = ndimage.label(chosen, _CORNERS)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[0] = 0
    return regions, sizes


def _touched(
    mask: npt.NDArray[np.uint8], regions: npt.NDArray[np.int32], count: int, classes: int
) -> npt.NDArray[np.bool_]:
    """Whether each region touches each class: (count, classes)."""
    touched = np.zeros((count, classes), bool)
    for label in range(classes):
        beside = ndimage.binary_dilation(mask == label, _CORNERS)
        touched[np.unique(regions[beside]), label] = True
    return touched


def _always(areas: npt.NDArray[np.floating], touching: npt.NDArray[np.bool_], label: int) -> tuple[int, ...]:
    """The other classes but the background that an object's regions touch, all but a small share of the area."""
    if label == 0 or len(areas) < _ENOUGH:
        return ()
    shares = areas @ touching / areas.sum()  # (K,)
    return tuple(int(other) for other in np.flatnonzero(shares >= _ALWAYS) if other not in (0, label))


def _quantile(areas: npt.NDArray[np.floating], share: float) -> float:
    """The area, from the smallest upwards, at which so much of their sum is reached."""
    areas = np.sort(areas)
    return float(areas[int(np.searchsorted(np.cumsum(areas), share * areas.sum()))])


def _inside(regions: npt.NDArray[np.int32], sizes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Numbers of the regions that lie wholly inside the image."""
    return np.setdiff1d(np.flatnonzero(sizes), _at_border(regions))


def _at_border(regions: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Numbers of the regions that touch the image's border."""
    edges = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return np.setdiff1d(edges, 0)
