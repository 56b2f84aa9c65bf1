"""The domain loss: source or target?"""

import torch
from torch import Tensor
from torch.nn import functional

from microseg.errors import ModelError

__all__ = ["domain_loss"]


def domain_loss(logits: Tensor, target_domain: bool | Tensor) -> Tensor:
    """Binary cross entropy of a domain classifier, averaged over all its decisions.

    Args:
        logits: Any shape with the batch first; positive means target.
        target_domain: Whether the images are of the target lab: one answer for all, or one per image.

    Shape:
        (B, …) and () or (B,) → ()

    Returns:
        The loss, with 0 = source and 1 = target.

    Raises:
        ModelError: ``target_domain`` has neither one answer nor one per image.
    """
    answers = torch.as_tensor(target_domain, device=logits.device).to(logits.dtype)  # () or (B,)
    if answers.ndim not in (0, 1) or (answers.ndim == 1 and answers.shape[0] != logits.shape[0]):
        raise ModelError(
            f"expected one answer, or one for each of {logits.shape[0]} images, got shape {tuple(answers.shape)}"
        )
    if answers.ndim == 1:
        answers = answers.view(-1, *[1] * (logits.ndim - 1))  # (B, 1, …)
    return functional.binary_cross_entropy_with_logits(logits, answers.expand_as(logits))
