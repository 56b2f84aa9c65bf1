"""Training losses: pure functions of tensors."""

from microseg.losses.consistency import consistency_loss
from microseg.losses.domain import domain_loss
from microseg.losses.segmentation import segmentation_loss, soft_dice

__all__ = ["consistency_loss", "domain_loss", "segmentation_loss", "soft_dice"]
