"""Training on labelled images."""

from typing import Any

from microseg.config.params import FitSettings
from microseg.datasets.sampling import Crops, CropSampler, step_generator
from microseg.errors import TrainingError
from microseg.models.network import PyramidSegmenter
from microseg.training.color_augmentation import jitter_color
from microseg.training.losses.segmentation import segmentation_loss
from microseg.training.method import Losses, TrainingMethod

__all__ = ["Supervised"]


class Supervised(TrainingMethod):
    """Cross entropy and Dice on labelled crops.

    Args:
        network: the segmenter to train.
        labelled: sampler of crops with masks.
        settings: the numbers.

    Raises:
        TrainingError: when the sampler has images without masks.
    """

    def __init__(self, network: PyramidSegmenter, labelled: CropSampler, settings: FitSettings) -> None:
        super().__init__(network, settings.ema_decay)
        if not labelled.labelled:
            raise TrainingError(
                "Expected a mask for every image of the labelled lab, some have none: see its manifest.csv."
            )
        self.labelled, self.settings = labelled, settings

    def batch(self, step: int, *, rank: int, world: int) -> Crops:
        """Crops with masks, their colors changed at random."""
        crops = self.labelled.draw(step, rank=rank, world=world)
        generator = step_generator(self.labelled.seed, step, rank)
        return Crops(jitter_color(crops.images, self.settings.source_color_jitter, generator), crops.masks)

    def forward(self, batch: Crops, progress: float) -> Losses:  # noqa: ARG002 (the same at every step)
        """L_seg = CE + α (1 − Dice)."""
        assert batch.masks is not None
        loss = segmentation_loss(self.network(batch.images), batch.masks, alpha=self.settings.dice_weight)
        return {"total": loss, "segmentation": loss.detach()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All of the network."""
        return [{"params": list(self.network.parameters()), "lr": self.settings.learning_rate}]
