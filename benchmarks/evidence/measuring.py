"""What is measured of one network: label-free scores on the new lab's own images, and, apart from them, the truth."""

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

__all__ = ["Ground", "evidence", "true_dice"]

_PIXELS = 1500  # of all images together, for the neighborhood density

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Ground:
    """What a task's networks are measured on; the target's test masks are no part of it.

    Attributes:
        source: the labelled lab's dataset.
        target: the unlabelled lab's, with as many images as are looked at.
        held_out: the labelled lab's own test images, as many.
    """

    source: LabDataset
    target: LabDataset
    held_out: tuple[Reference, ...]

    @classmethod
    def of(cls, task: Task, work: Path, images: int) -> "Ground":
        """Of a task.

        Args:
            task: the task.
            work: where its datasets are made.
            images: at most so many of each lab, spread evenly.
        """
        source, target = open_labs(task, work)
        held_out = task.references("source")
        chosen = [target.rows[index] for index in _evenly(len(target.rows), images)]
        return cls(
            source,
            replace(target, rows=tuple(chosen)),
            tuple(held_out[index] for index in _evenly(len(held_out), images)),
        )

    @cached_property
    def expected(self) -> npt.NDArray[np.float64]:
        """Share of the area of each class in the labelled lab's training masks. (K,)."""
        classes = len(self.source.metadata.classes)
        rows = self.source.select(split="train", labelled=True)
        shares = np.array([class_shares(read_mask(self.source.mask_path(row)), classes) for row in rows])  # (N, K)
        return np.asarray(shares.mean(0), np.float64)

    def masks(self, engine: Engine) -> list[Image]:
        """A network's segmentation of the new lab's images."""
        return [_mask(each) for each in _probabilities(engine, self.target)]


def evidence(network: PyramidSegmenter, ground: Ground, teacher: Sequence[Image] | None) -> dict[str, Any]:
    """What the gate is told of a network, and the study's further scores; no mask of the target is read.

    Args:
        network: the network.
        ground: what to look at.
        teacher: segmentations of the new lab by the network in production; None: it is this one.

    Returns:
        ``source_dice``, Dice on the labelled lab's test images, and ``label_free``, scores by name; one that
        is not known is left out.
    """
    engine, classes = Engine(network), network.config.classes
    compared = compare(network, None, source=[ground.source], target=ground.target, engine=lambda _: engine)
    seen = _probabilities(engine, ground.target)
    masks = [_mask(each) for each in seen]
    shares = np.mean([class_shares(mask, len(classes)) for mask in masks], axis=0)
    agreements = [
        cohen_kappa(*pair, len(classes)) for pair in zip(masks, masks if teacher is None else teacher, strict=True)
    ]
    agreeing = [value for value in agreements if np.isfinite(value)]
    more = {
        "teacher_agreement": float(np.mean(agreeing)) if agreeing else float("nan"),
        "neighborhood_density": soft_neighborhood_density(_sample(seen)),
        "share_shift": share_shift(shares, ground.expected),
    }
    known = {name: value for name, value in {**compared.candidate.label_free, **more}.items() if np.isfinite(value)}
    return {"source_dice": true_dice(network, ground.held_out, engine), "label_free": known}


def true_dice(network: PyramidSegmenter, references: Sequence[Reference], engine: Engine | None = None) -> float:
    """Mean over the foreground classes of the mean Dice over images, as the grid of adaptations reports it."""
    ready = engine or Engine(network)
    return float(mean_scores(score(ready.probabilities, references, network.config.classes))["dice"])


def _probabilities(engine: Engine, lab: LabDataset) -> list[npt.NDArray[np.float32]]:
    return [engine.probabilities(read_image(each.image), each.mpp) for each in lab_targets(lab)]


def _mask(probabilities: npt.NDArray[np.float32]) -> Image:
    return np.asarray(probabilities.argmax(0), np.uint8)


def _sample(seen: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Probabilities of pixels at random places, the same for every network. (N, K)."""
    rng, each = np.random.default_rng(0), max(1, _PIXELS // len(seen))
    pixels = [one.reshape(len(one), -1) for one in seen]  # (K, H·W) each
    return np.concatenate([one[:, rng.integers(one.shape[1], size=each)].T for one in pixels])


def _evenly(length: int, limit: int) -> list[int]:
    return [int(index) for index in np.linspace(0, length - 1, min(limit, length)).round()]
