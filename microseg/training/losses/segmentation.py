"""The segmentation loss: cross entropy plus Dice."""

import torch
from torch import Tensor
from torch.nn import functional

from microseg.errors import ModelError

__all__ = ["segmentation_loss", "soft_dice"]


def soft_dice(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Soft Dice of the whole batch, averaged over the classes that the target has.

    For each class 2·Σpy / (Σp + Σy), p the softmax probability, y 0 or 1, sums over all pixels of the batch that are
    not ignored. A class that is nowhere in the target has no Dice and is left out; with no pixel at all it is 1.

    Args:
        logits: Scores of each class.
        target: Class index of each pixel, or ``ignore_index``.
        ignore_index: Index of pixels that do not count.

    Shape:
        (B, K, H, W) and (B, H, W) → ()

    Returns:
        Soft Dice in 0..1, differentiable.

    Raises:
        ModelError: The shapes do not fit, or the target holds an index that is no class.

    Reference:
        Milletari et al., "V-Net", 3DV 2016 (with first powers in the denominator).
    """
    counted = _check(logits, target, ignore_index)
    if counted is None:
        return 1 + 0 * logits.sum()
    return _dice(logits.softmax(dim=1), target, counted)


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
) -> Tensor:
    """L_seg = CE(y, ŷ) + α · (1 − Dice(y, ŷ)).

    Args:
        logits: Scores of each class.
        target: Class index of each pixel, or ``ignore_index``.
        alpha: α ≥ 0, the weight of the Dice term.
        ignore_index: Index of pixels that do not count.
        class_weights: (K,), positive weights of the classes in the cross entropy, which stays a weighted mean.

    Shape:
        (B, K, H, W) and (B, H, W) → ()

    Returns:
        The loss; 0, with a gradient of 0, when every pixel is ignored.

    Raises:
        ModelError: The shapes do not fit, the target holds an index that is no class, or ``alpha`` is negative.
    """
    counted = _check(logits, target, ignore_index)
    if not alpha >= 0:
        raise ModelError(f"expected alpha of 0 or more, got {alpha}; it weighs the Dice term")
    if class_weights is not None and class_weights.shape != logits.shape[1:2]:
        raise ModelError(f"expected {logits.shape[1]} class weights, got shape {tuple(class_weights.shape)}")
    if counted is None:
        return 0 * logits.sum()
    logs = logits.log_softmax(dim=1)  # (B, K, H, W)
    cross_entropy = functional.nll_loss(logs, target.long(), weight=class_weights, ignore_index=ignore_index)
    return cross_entropy + alpha * (1 - _dice(logs.exp(), target, counted))


def _dice(probabilities: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    classes = torch.arange(probabilities.shape[1], device=target.device).view(1, -1, 1, 1)  # (1, K, 1, 1)
    mask = counted.unsqueeze(1)  # (B, 1, H, W)
    reference = ((target.unsqueeze(1) == classes) & mask).to(probabilities.dtype)  # (B, K, H, W)
    overlap = (probabilities * reference).sum(dim=(0, 2, 3))  # (K,)
    predicted = (probabilities * mask).sum(dim=(0, 2, 3))  # (K,)
    referred = reference.sum(dim=(0, 2, 3))  # (K,)
    present = referred > 0  # (K,)
    return (2 * overlap[present] / (predicted + referred)[present]).mean()


def _check(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor | None:
    """Mask of the pixels that count (B, H, W), or None if there is none."""
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ModelError(
            f"expected logits (B, K, H, W) and a target (B, H, W) of the same size, "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    counted = target != ignore_index  # (B, H, W)
    indices = target[counted]
    if not indices.numel():
        return None
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= logits.shape[1]:
        raise ModelError(
            f"expected class indices 0..{logits.shape[1] - 1}, or {ignore_index} for ignored pixels, "
            f"got {least}..{most}; the network needs one class for each index in the masks"
        )
    return counted
