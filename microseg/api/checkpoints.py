"""Evaluation of a network in training: its metrics, and the score by which a checkpoint is selected."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from microseg.datasets.dataset import LabDataset
from microseg.evaluation.label_free import lab_targets, label_free_scores
from microseg.evaluation.references import lab_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter

__all__ = ["evaluate_checkpoint", "source_dice"]

_EVALUATED_TARGETS = 6  # images of each target lab, per evaluation


def source_dice(network: PyramidSegmenter, labs: Sequence[LabDataset]) -> float | None:
    """Return the mean over labs of the Dice on their ``val`` split; None if no lab has one."""
    segment = Engine(network, device=next(network.parameters()).device, optimize=False).probabilities
    dice = [
        mean_scores(score(segment, references, network.config.classes))["dice"]
        for lab in labs
        if (references := lab_references(lab, "val"))
    ]
    finite = [value for value in dice if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def evaluate_checkpoint(
    network: PyramidSegmenter,
    *,
    source: Sequence[LabDataset],
    target: Sequence[LabDataset],
    in_use: float | None = None,
) -> Mapping[str, float]:
    """Measure what needs no labels of the target labs.

    Args:
        network: The network in training.
        source: Source labs.
        target: Target labs; none in supervised training.
        in_use: Of an adaptation, `source_dice` of the network in use.

    Returns:
        ``source_dice``, label-free scores of the target labs, and ``score``, by which the best checkpoint is selected,
        of equal ones the last. In supervised training it is the Dice. In an adaptation it is 0 where the network keeps
        the Dice of the network in use, else minus the loss, so that the result is the last network that keeps it, or
        the one that loses least. Label-free scores do not select, since an adaptation can raise them and be wrong.
    """
    dice = source_dice(network, source)
    metrics = {} if dice is None else {"source_dice": dice}
    if not target:
        return metrics | ({} if dice is None else {"score": dice})
    segment = Engine(network, device=next(network.parameters()).device, optimize=False).probabilities
    images = [image for lab in target for image in lab_targets(lab, _EVALUATED_TARGETS)]
    scores = label_free_scores(segment, images, len(network.config.classes), views=0)
    metrics |= {f"target_{name}": value for name, value in scores.items()}
    if dice is not None and in_use is not None:
        metrics["score"] = min(0.0, dice - in_use)
    return metrics
