"""Measurements of a whole image: areas, numbers of objects, and how confident the network is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.outputs.measurements import POSITIVE
from microseg.outputs.record import ImageInfo

__all__ = ["ConfidenceSums", "count_positive", "summarize"]

_ROWS = 256  # rows of an image that are processed at once


@dataclass
class ConfidenceSums:
    """How confident the network is, summed over the pixels that it computed.

    Attributes:
        pixels: Number of pixels.
        highest: Sum of each pixel's highest probability.
        entropy: Sum of the entropies, in nats.
    """

    pixels: int = 0
    highest: float = 0.0
    entropy: float = 0.0

    def add(self, probabilities: npt.NDArray[np.float32]) -> None:
        """Add the pixels of a block.

        Args:
            probabilities: Class probabilities.

        Shape:
            (K, h, w)
        """
        for top in range(0, probabilities.shape[1], _ROWS):
            rows = probabilities[:, top : top + _ROWS]  # (K, rows, w)
            best = rows.max(axis=0)
            self.pixels += best.size
            self.highest += float(best.sum(dtype=np.float64))
            self.entropy -= float((rows * np.log(np.maximum(rows, 1e-12))).sum(dtype=np.float64))

    def add_sums(self, other: "ConfidenceSums") -> None:
        """Add the pixels that others were summed over."""
        self.pixels += other.pixels
        self.highest += other.highest
        self.entropy += other.entropy


def summarize(
    image: ImageInfo,
    pixels: npt.NDArray[np.int64],
    objects: npt.NDArray[np.int64],
    confidence: ConfidenceSums | None,
    tissue: float | None = None,
    positive: npt.NDArray[np.int64] | None = None,
) -> dict[str, int | float | None]:
    """Measurements of a whole image.

    Args:
        image: The image, its pixel size and classes.
        pixels: Number of pixels of each class.
        objects: Number of objects of each class.
        confidence: Sums over the computed pixels; None if unknown.
        tissue: Fraction of the image that is tissue; None if unknown.
        positive: Number of DAB-positive objects of each class, see `count_positive`; None where DAB is not measured.

    Shape:
        pixels (K,), objects (K,), positive (K,)

    Returns:
        ``area_mm2`` of the image, ``tissue_mm2`` and ``glass_mm2`` of its parts; for each class but the background
        ``objects_<class>``, ``objects_per_mm2_<class>`` and ``area_fraction_<class>``, of the tissue, or of the image
        where that is unknown, and where DAB is measured ``positive_<class>`` and ``labelling_index_<class>``, the
        share of positive objects; ``mean_confidence``, the mean of the highest probability; ``mean_entropy``, from 0
        (certain) to 1 (all classes equally probable). None where unknown.
    """
    total, count = int(pixels.sum()), len(image.classes)
    mean_confidence = mean_entropy = None
    if confidence is not None and confidence.pixels:
        mean_confidence = confidence.highest / confidence.pixels
        mean_entropy = confidence.entropy / confidence.pixels / float(np.log(count))
    area = None if image.mpp is None else image.width * image.height * image.mpp**2 / 1e6
    share = 1.0 if tissue is None else tissue
    summary: dict[str, int | float | None] = {"area_mm2": area, "tissue_mm2": None, "glass_mm2": None}
    if area is not None and tissue is not None:
        summary |= {"tissue_mm2": area * tissue, "glass_mm2": area * (1 - tissue)}
    for index, name in enumerate(image.classes[1:], start=1):
        summary[f"objects_{name}"] = int(objects[index])
        summary[f"objects_per_mm2_{name}"] = float(objects[index] / (area * share)) if area and share else None
        summary[f"area_fraction_{name}"] = float(pixels[index] / (total * share)) if share else None
        if positive is not None:
            summary[f"positive_{name}"] = int(positive[index])
            summary[f"labelling_index_{name}"] = float(positive[index] / objects[index]) if objects[index] else None
    return summary | {"mean_confidence": mean_confidence, "mean_entropy": mean_entropy}


def count_positive(columns: Mapping[str, npt.NDArray[Any]], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number of DAB-positive objects of each class, (K,), of some objects with their measurements."""
    found = columns["class"][columns[POSITIVE] == 1]
    return np.array([np.count_nonzero(found == name) for name in classes], np.int64)
