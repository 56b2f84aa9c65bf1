"""Adaptation by entropy minimization (Grandvalet & Bengio, 2004)."""

from typing import Any

from microseg.datasets.sampling import Crops, CropSampler, Sample
from microseg.training.adaptation.method import AdaptationMethod
from microseg.training.method import Losses


class EntropyMinimization(AdaptationMethod):
    """Segmentation loss on source crops, and the entropy of the predictions on target crops."""

    def __init__(self, network: Any, source: Any, targets: Any, settings: Any, **options: Any) -> None:
        super().__init__(network, source, targets, settings, **options)
        windows = [Sample(window) for lab in targets for window in lab.windows]
        self.source, self.target = (
            CropSampler(samples, size=self.crop_size, batch=self.crops_per_step, seed=self.seed)
            for samples in (source, windows)
        )

    def batch(self, step: int, *, rank: int, world: int) -> tuple[Crops, Crops]:
        """Crops of source and target labs."""
        return self.source.draw(step, rank=rank, world=world), self.target.draw(step, rank=rank, world=world)

    def forward(self, batch: tuple[Crops, Crops], progress: float) -> Losses:
        """Both losses."""
        source, target = batch
        head, dice_weight = self.network.head, self.settings.dice_weight
        segmentation = head.loss(self.network(source.images), source.masks, dice_weight)
        probabilities = head.probabilities(self.network(target.images)).clamp_min(1e-6)
        entropy = -(probabilities * probabilities.log()).sum(dim=1).mean()
        total = segmentation + 0.01 * entropy
        return {"total": total, "segmentation": segmentation.detach(), "entropy": entropy.detach()}
