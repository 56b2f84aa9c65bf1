"""Training losses: pure functions of tensors."""

from microseg.losses.domain import domain_loss
from microseg.losses.segmentation import segmentation_loss, soft_dice

__all__ = ["domain_loss", "segmentation_loss", "soft_dice"]
