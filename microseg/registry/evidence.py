"""The evidence on a version: what was measured, and on exactly what."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic_core import to_json

__all__ = ["ConfidenceInterval", "Evidence", "EvidenceKey"]


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value with its bootstrap confidence interval.

    Args:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Evidence:
    """Measurements of one model version.

    Args:
        source_dice: Mean Dice (0..1) on the held-out images of each source lab.
        target_dice: Dice (0..1) on the target lab's masks, if it has some; only reported.
        label_free: Label-free measurements on the target lab. The gate uses ``stain_explained_variance`` (0..1),
            ``augmentation_consistency`` (Cohen's kappa, 0..1), ``foreground_share`` (predicted, 0..1) and
            ``expected_foreground_share`` (in the masks of the source labs, 0..1), and ``forward_validation`` (area
            under the ROC curve, 0..1); others are only reported. Counts are integers.
        target_gain: Of the candidate: Dice gained over production on the target lab's masks, image by image (-1..1);
            None if there are masks of too few slides.
        source_f1: Mean object F1 (0..1, at an intersection over union of 0.5) on the held-out images of each source lab
            whose objects are numbered.
    """

    source_dice: Mapping[str, float] = field(default_factory=dict)
    target_dice: ConfidenceInterval | None = None
    label_free: Mapping[str, int | float] = field(default_factory=dict)
    target_gain: ConfidenceInterval | None = None
    source_f1: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvidenceKey:
    """What a comparison of two versions was measured on; with another key it says nothing.

    Args:
        candidate: ID of the candidate's model, unique in all registries.
        production: ID of the model that it was compared with; None if there was none.
        lab: The target lab; None if only source labs were evaluated.
        datasets: Digest of each lab's dataset.
        settings: The settings that change measurements, as JSON values.
    """

    candidate: str
    production: str | None
    lab: str | None
    datasets: Mapping[str, str]
    settings: Mapping[str, object]

    @property
    def digest(self) -> str:
        """Hash of the key, for names of files and tags."""
        values = to_json(vars(self) | {"datasets": dict(sorted(self.datasets.items()))})
        return hashlib.sha256(values).hexdigest()[:20]
