"""The first teacher of a new lab: the segmenter in use, with as much of the lab's own statistics as serves.

How much of its own normalisation statistics serves differs from lab to lab, and no label tells. But what a teacher says
can be looked at: the stain should explain its labels, and it should say the same of the same tissue seen somewhat
larger. The share whose word is the most credible is taken, the largest among equals. It is a half at most: beyond that
a segmentation goes with the stain more and more, but not with the tissue.
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.data.images import read_image
from microseg.metrics import agreement, class_separation
from microseg.model import PyramidSegmenter
from microseg.training.normalisation import mix_statistics, read_statistics, write_statistics
from microseg.training.regions import RegionRules, possible_labels
from microseg.training.shift import LabShift, middle, predict_at, spread, to_batch

__all__ = ["choose_share", "first_teacher"]

SHARES = (0.0, 0.25, 0.5)
_WINDOWS = 8  # looked at
_LARGER = 1.25  # times the lab's scale
_EQUAL = 0.98  # of the best credibility


def first_teacher(network: PyramidSegmenter, shift: LabShift, share: float) -> PyramidSegmenter:
    """A copy of a segmenter whose normalisation statistics are in part a lab's own.

    Args:
        network: the segmenter in use.
        shift: what was measured of the lab.
        share: of the lab's own statistics, 0..1.
    """
    teacher = copy.deepcopy(network).eval()
    write_statistics(teacher, mix_statistics(read_statistics(network), shift.zoomed_statistics, share))
    return teacher


def choose_share(network: PyramidSegmenter, windows: Sequence[Path], shift: LabShift, rules: RegionRules) -> float:
    """How much of a lab's own statistics the first teacher should have.

    Args:
        network: the segmenter in use.
        windows: files of the lab's windows at the model's scale.
        shift: what was measured of the lab.
        rules: what regions are like.

    Returns:
        One of `SHARES`.
    """
    images = [middle(read_image(window), shift.zoom) for window in spread(windows, _WINDOWS)]
    credible = {
        share: _credibility(first_teacher(network, shift, share), images, shift.zoom, rules) for share in SHARES
    }
    return max(share for share in SHARES if credible[share] >= _EQUAL * max(credible.values()))


def _credibility(
    teacher: PyramidSegmenter, images: Sequence[npt.NDArray[np.uint8]], zoom: float, rules: RegionRules
) -> float:
    """How far the stain explains what a teacher says, times how far it says the same at another scale. 0..1."""
    device = next(teacher.parameters()).device
    batches = [to_batch(image, device) for image in images]
    seen = [[predict_at(teacher, batch, zoom * by)[0].cpu() for batch in batches] for by in (1.0, _LARGER)]
    classes = len(seen[0][0])
    said, larger = (possible_labels(probabilities, rules, zoom) for probabilities in seen)
    separations = map(partial(class_separation, classes=classes), images, said)
    first, second = (np.concatenate([mask.ravel() for mask in masks]) for masks in (said, larger))
    counted = (first < classes) & (second < classes)
    return float(np.mean(list(separations))) * float(np.nan_to_num(agreement(first[counted], second[counted], classes)))
