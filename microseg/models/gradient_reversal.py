"""The gradient reversal layer: the min–max game as one backward pass."""

from typing import Any

import torch
from torch import Tensor

from microseg.errors import ModelError

__all__ = ["reverse_gradient"]


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient * -ctx.strength, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Identity forwards; multiplies the gradient by ``-strength`` backwards.

    Between segmenter and domain classifier it makes one minimization of ``L_seg + L_domain`` do both sides of the game:
    the classifier descends on L_domain, the segmenter ascends on ``strength`` · L_domain.

    Args:
        x: Features, any shape.
        strength: λ ≥ 0, the weight of the domain loss for the segmenter.

    Returns:
        ``x`` unchanged.

    Raises:
        ModelError: ``strength`` is negative.

    Reference:
        Ganin & Lempitsky, "Unsupervised domain adaptation by backpropagation", ICML 2015.
    """
    if not strength >= 0:
        raise ModelError(f"expected a reversal strength of 0 or more, got {strength}; the sign is built in")
    reversed_: Tensor = _ReverseGradient.apply(x, strength)
    return reversed_
