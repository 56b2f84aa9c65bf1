from .domain import domain_loss
from .segmentation import segmentation_loss, soft_dice

__all__ = ["domain_loss", "segmentation_loss", "soft_dice"]
