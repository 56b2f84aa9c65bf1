"""Training losses: cross entropy plus Dice of a segmentation, and the domain loss of a domain classifier."""

import torch
from torch import Tensor
from torch.nn import functional

from microseg.annotations.index_masks import IGNORE
from microseg.errors import ModelError

__all__ = ["domain_loss", "interior_loss", "segmentation_loss"]


def segmentation_loss(logits: Tensor, target: Tensor, dice_weight: float = 1.0) -> Tensor:
    """L_seg = CE(y, ŷ) + α · (1 − Dice(y, ŷ)).

    Dice is the soft Dice of the whole batch, averaged over the classes that the target has: for each class
    2·Σpy / (Σp + Σy), p the softmax probability, y 0 or 1, sums over all pixels of the batch that are not ignored.

    Args:
        logits: Logits of each class.
        target: Class index of each pixel; 255 is ignored.
        dice_weight: α ≥ 0, weight of the Dice term.

    Shape:
        (B, K, H, W) and (B, H, W) → ()

    Returns:
        The loss; 0, with a gradient of 0, when every pixel is ignored.

    Raises:
        ModelError: The shapes differ, the target holds an index that is no class, or ``dice_weight`` is negative.

    Reference:
        Milletari et al., "V-Net", 3DV 2016 (with first powers in the denominator).
    """
    valid = _valid_pixels(logits, target)
    if not dice_weight >= 0:
        raise ModelError(f"expected a dice_weight of 0 or more, got {dice_weight}; it is the weight of the Dice term")
    if valid is None:
        return 0 * logits.sum()
    log_probabilities = logits.log_softmax(dim=1)  # (B, K, H, W)
    cross_entropy = functional.nll_loss(log_probabilities, target.long(), ignore_index=IGNORE)
    return cross_entropy + dice_weight * (1 - _soft_dice(log_probabilities.exp(), target, valid))


def interior_loss(logits: Tensor, interior: Tensor) -> Tensor:
    """Binary cross entropy of the interior of objects, averaged over the pixels where it is known.

    Args:
        logits: Logits of the interior.
        interior: How far each pixel lies inside its object, 0..1; NaN where unknown.

    Shape:
        (B, H, W) and (B, H, W) → ()

    Returns:
        The loss; 0, with a gradient of 0, where it is known nowhere.
    """
    known = ~interior.isnan()  # (B, H, W)
    losses = functional.binary_cross_entropy_with_logits(logits, interior.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def domain_loss(logits: Tensor, target_domain: bool) -> Tensor:
    """Binary cross entropy of a domain classifier, averaged over all its decisions.

    Args:
        logits: Logits of any shape; positive means target.
        target_domain: Whether the images are of the target lab.

    Shape:
        (B, …) → ()
    """
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(target_domain)))


def _soft_dice(probabilities: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    classes = torch.arange(probabilities.shape[1], device=target.device).view(1, -1, 1, 1)  # (1, K, 1, 1)
    mask = valid.unsqueeze(1)  # (B, 1, H, W)
    reference = ((target.unsqueeze(1) == classes) & mask).to(probabilities.dtype)  # (B, K, H, W)
    overlap = (probabilities * reference).sum(dim=(0, 2, 3))  # (K,)
    predicted = (probabilities * mask).sum(dim=(0, 2, 3))  # (K,)
    referred = reference.sum(dim=(0, 2, 3))  # (K,)
    present = referred > 0  # (K,)
    return (2 * overlap[present] / (predicted + referred)[present]).mean()


def _valid_pixels(logits: Tensor, target: Tensor) -> Tensor | None:
    """Mask of the pixels that are not ignored (B, H, W); None if there is none."""
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ModelError(
            f"expected logits (B, K, H, W) and a target (B, H, W) of the same size, "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    valid = target != IGNORE  # (B, H, W)
    indices = target[valid]
    if not indices.numel():
        return None
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= logits.shape[1]:
        raise ModelError(
            f"expected class indices 0..{logits.shape[1] - 1}, or {IGNORE} for ignored pixels, got {least}..{most}; "
            "the network needs one class for each index in the masks"
        )
    return valid
