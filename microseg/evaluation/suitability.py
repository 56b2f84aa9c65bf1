"""Whether a network already suits a lab, measured on the lab's images without labels, before it is adapted to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from microseg.config.params import OutOfDistributionSettings
from microseg.datasets.dataset import LabDataset
from microseg.evaluation.label_free import lab_targets, label_free_scores, ood_scores
from microseg.inference.engine import Engine
from microseg.models.reference_distribution import OutOfDistributionSummary, ReferenceDistribution, summarize_scores

__all__ = ["Suitability", "measure_suitability"]

_IMAGES = 32  # largest number of images of a lab, spread evenly


@dataclass(frozen=True)
class Suitability:
    """Measurements of a network on a lab and on its source labs.

    Args:
        out_of_distribution: Of the lab's images, relative to the labs that the network was trained on or adapted to.
        consistency: Augmentation consistency on the lab's images, 0..1; see `label_free_scores`.
        source_consistency: The lowest of the source labs' held-out images, 0..1.
        max_loss: See ``onboarding.max_consistency_loss``.
    """

    out_of_distribution: OutOfDistributionSummary
    consistency: float
    source_consistency: float
    max_loss: float

    @property
    def suited(self) -> bool:
        """Whether the lab is in distribution, and the network as consistent on it as on its source labs."""
        summary = self.out_of_distribution
        known = summary.images > 0 and not summary.exceeds_limits
        return known and self.consistency >= self.source_consistency - self.max_loss - 1e-9  # False for NaN

    def __str__(self) -> str:
        summary = self.out_of_distribution
        return (
            f"{summary.out_of_distribution} of {summary.images} images are out of distribution (median score "
            f"{summary.median_score:.2f}, limit of an image: 1), and its augmentation consistency is "
            f"{self.consistency:.3f} ({self.source_consistency:.3f} on its source labs; a loss of up to "
            f"{self.max_loss:.3f} is allowed)"
        )


def measure_suitability(
    engine: Engine,
    lab: LabDataset,
    source: Sequence[LabDataset],
    reference: ReferenceDistribution,
    *,
    max_loss: float,
    policy: OutOfDistributionSettings | None = None,
    on_image: Callable[[str], None] = lambda _name: None,
) -> Suitability:
    """Measure whether a network suits a lab.

    It assumes that images of a familiar appearance on which predictions are stable are segmented as well as those of
    the source labs. Objects of a new kind in a familiar stain are not noticed.

    Args:
        engine: Engine of the network.
        lab: The lab; its masks are not read.
        source: The network's source labs; of each, the images of the ``test`` split, or all if it has none.
        reference: The network's reference distribution.
        max_loss: See ``onboarding.max_consistency_loss``.
        policy: When the lab is out of distribution; None for the defaults.
        on_image: Called with the name of each evaluated image.
    """

    def consistency(of: LabDataset) -> float:
        images = lab_targets(of, _IMAGES)
        return label_free_scores(engine.probabilities, images, len(engine.classes), on_image)[
            "augmentation_consistency"
        ]

    scores = ood_scores(reference, lab_targets(lab, _IMAGES), engine.mpp)
    held_out = [replace(it, rows=it.select(split="test") or it.rows) for it in source]
    return Suitability(
        summarize_scores(scores, policy), consistency(lab), min(consistency(it) for it in held_out), max_loss
    )
