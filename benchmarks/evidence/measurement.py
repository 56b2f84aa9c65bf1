"""The measurements of one network: label-free scores on the target lab, and separately its true Dice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation.tasks import Task, open_labs
from benchmarks.evidence.scores import share_shift, soft_neighborhood_density
from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import LabDataset
from microseg.evaluation.comparison import compare
from microseg.evaluation.criteria import class_shares, cohen_kappa
from microseg.evaluation.label_free import lab_targets
from microseg.evaluation.references import Reference, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter
from microseg.slides.images import read_image

__all__ = ["EvaluationImages", "evidence", "true_dice"]

_PIXELS = 1500  # of all images, for the neighborhood density

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EvaluationImages:
    """The images on which the networks of a task are measured, without the target's test masks.

    Args:
        source: Dataset of the source lab.
        target: Dataset of the target lab, with the selected images.
        held_out: Selected test images of the source lab.
    """

    source: LabDataset
    target: LabDataset
    held_out: tuple[Reference, ...]

    @classmethod
    def of(cls, task: Task, work: Path, limit: int) -> "EvaluationImages":
        """Select the images of a task.

        Args:
            task: The task.
            work: Folder of its datasets.
            limit: Largest number of images of each lab, spread evenly.
        """
        source, target = open_labs(task, work)
        held_out = task.references("source")
        rows = [target.rows[index] for index in _evenly(len(target.rows), limit)]
        return cls(
            source,
            replace(target, rows=tuple(rows)),
            tuple(held_out[index] for index in _evenly(len(held_out), limit)),
        )

    @cached_property
    def expected(self) -> npt.NDArray[np.float64]:
        """Area fraction of each class in the source lab's training masks, (K,)."""
        classes = len(self.source.metadata.classes)
        rows = self.source.select(split="train", labelled=True)
        shares = np.array([class_shares(read_mask(self.source.mask_path(row)), classes) for row in rows])  # (N, K)
        return np.asarray(shares.mean(0), np.float64)

    def masks(self, engine: Engine) -> list[Image]:
        """Segment the target lab's images."""
        return [_mask(each) for each in _probabilities(engine, self.target)]


def evidence(network: PyramidSegmenter, images: EvaluationImages, teacher: Sequence[Image] | None) -> dict[str, Any]:
    """Measure the evidence of the gate, and further scores; no mask of the target is read.

    Args:
        network: The network.
        images: The images of the task.
        teacher: Segmentations of the target lab by the network in production; None if it is this one.

    Returns:
        ``source_dice``, Dice on the source lab's test images, and ``label_free``, scores by name; unknown ones are left
        out.
    """
    engine, classes = Engine(network), network.config.classes
    compared = compare(network, None, source=[images.source], target=images.target, engine=lambda _: engine)
    probabilities = _probabilities(engine, images.target)
    masks = [_mask(each) for each in probabilities]
    shares = np.mean([class_shares(mask, len(classes)) for mask in masks], axis=0)
    agreements = [
        cohen_kappa(*pair, len(classes)) for pair in zip(masks, masks if teacher is None else teacher, strict=True)
    ]
    finite = [value for value in agreements if np.isfinite(value)]
    further = {
        "teacher_agreement": float(np.mean(finite)) if finite else float("nan"),
        "neighborhood_density": soft_neighborhood_density(_sample(probabilities)),
        "share_shift": share_shift(shares, images.expected),
    }
    known = {name: value for name, value in {**compared.candidate.label_free, **further}.items() if np.isfinite(value)}
    return {"source_dice": true_dice(network, images.held_out, engine), "label_free": known}


def true_dice(network: PyramidSegmenter, references: Sequence[Reference], engine: Engine | None = None) -> float:
    """Return the mean over the foreground classes of the mean Dice over images, as `benchmarks.adaptation` reports."""
    ready = engine or Engine(network)
    return float(mean_scores(score(ready.probabilities, references, network.config.classes))["dice"])


def _probabilities(engine: Engine, lab: LabDataset) -> list[npt.NDArray[np.float32]]:
    return [engine.probabilities(read_image(each.image), each.mpp) for each in lab_targets(lab)]


def _mask(probabilities: npt.NDArray[np.float32]) -> Image:
    return np.asarray(probabilities.argmax(0), np.uint8)


def _sample(probabilities: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Probabilities of random pixels, the same for every network, (N, K)."""
    rng, each = np.random.default_rng(0), max(1, _PIXELS // len(probabilities))
    pixels = [one.reshape(len(one), -1) for one in probabilities]  # (K, H·W) each
    return np.concatenate([one[:, rng.integers(one.shape[1], size=each)].T for one in pixels])


def _evenly(length: int, limit: int) -> list[int]:
    return [int(index) for index in np.linspace(0, length - 1, min(limit, length)).round()]
