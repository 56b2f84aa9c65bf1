"""Training losses: cross entropy plus Dice of a segmentation, and the domain loss of a domain classifier.

They are computed in float32, also of logits of 16 bits, and never wait for a GPU: there are no decisions on values.
"""

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
        ModelError: The shapes differ, ``dice_weight`` is negative, or, on the CPU, the target holds an index that is no
            class. (On a GPU, CUDA ends the program then; `CropSampler` checks masks before they get there.)

    Reference:
        Milletari et al., "V-Net", 3DV 2016 (with first powers in the denominator).
    """
    _check(logits, target)
    if not dice_weight >= 0:
        raise ModelError(f"expected a dice_weight of 0 or more, got {dice_weight}; it is the weight of the Dice term")
    valid = target != IGNORE  # (B, H, W)
    log_probabilities = _at_least_float32(logits).log_softmax(dim=1)  # (B, K, H, W)
    total = functional.nll_loss(log_probabilities, target.long(), ignore_index=IGNORE, reduction="sum")
    cross_entropy = total / valid.sum().clamp(min=1)
    known = valid.any().to(log_probabilities.dtype)  # 0 where every pixel is ignored
    return cross_entropy + dice_weight * (known - _soft_dice(log_probabilities.exp(), target, valid))


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
    logits = _at_least_float32(logits)
    losses = functional.binary_cross_entropy_with_logits(logits, interior.nan_to_num().to(logits), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def domain_loss(logits: Tensor, target_domain: bool) -> Tensor:
    """Binary cross entropy of a domain classifier, averaged over all its decisions.

    Args:
        logits: Logits of any shape; positive means target.
        target_domain: Whether the images are of the target lab.

    Shape:
        (B, …) → ()
    """
    logits = _at_least_float32(logits)
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(target_domain)))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _soft_dice(probabilities: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Soft Dice, averaged over the classes that the target has; 0 if there is none."""
    classes = torch.arange(probabilities.shape[1], device=target.device).view(1, -1, 1, 1)  # (1, K, 1, 1)
    mask = valid.unsqueeze(1)  # (B, 1, H, W)
    reference = ((target.unsqueeze(1) == classes) & mask).to(probabilities.dtype)  # (B, K, H, W)
    overlap = (probabilities * reference).sum(dim=(0, 2, 3))  # (K,)
    predicted = (probabilities * mask).sum(dim=(0, 2, 3))  # (K,)
    referred = reference.sum(dim=(0, 2, 3))  # (K,)
    present = referred > 0  # (K,)
    dice = torch.where(present, 2 * overlap / torch.where(present, predicted + referred, 1), 0)  # (K,)
    return dice.sum() / present.sum().clamp(min=1)


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ModelError(
            f"expected logits (B, K, H, W) and a target (B, H, W) of the same size, "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if target.device.type != "cpu":
        return
    indices = target[target != IGNORE]
    if not indices.numel():
        return
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= logits.shape[1]:
        raise ModelError(
            f"expected class indices 0..{logits.shape[1] - 1}, or {IGNORE} for ignored pixels, got {least}..{most}; "
            "the network needs one class for each index in the masks"
        )
