"""Domain classifiers and the gradient reversal layer: for training only, never part of a saved network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.errors import ModelError
from microseg.models.layers import initialize

__all__ = ["FeatureDomainClassifier", "ImageDomainClassifier", "reverse_gradient"]

_SLOPE = 0.2


class ImageDomainClassifier(nn.Module):
    """D_img: one decision per image, from the output of the pyramid pooling module.

    Without batch normalization: each batch is of one domain, which its statistics would reveal.

    Args:
        in_channels: Channels of the pyramid pooling module's output (`PyramidSegmenter.pyramid_channels`).
        channels: Channels of the hidden layers.

    Shape:
        (B, in_channels, h, w) → (B, 1), logits; positive means target
    """

    def __init__(self, in_channels: int, channels: int = 64) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.LeakyReLU(_SLOPE),
        )
        self.decide = nn.Linear(channels, 1)
        initialize(self)

    def forward(self, pyramid: Tensor) -> Tensor:
        """Domain logit of each image."""
        x = self.convolutions(_bounded(pyramid))  # (B, channels, h, w)
        logits: Tensor = self.decide(x.mean(dim=(2, 3)))  # (B, 1)
        return logits


class FeatureDomainClassifier(nn.Module):
    """D_feat: one decision per location, from the fusion of all decoder levels.

    Every level is projected by a 1×1 convolution, resized to the last level but one (1/4 of the input, where the finest
    level has stride 2) and concatenated. Only 1×1 convolutions follow, since the decoder's features already include
    their surroundings.

    Args:
        level_channels: Channels of the decoder levels, deepest first (`PyramidSegmenter.decoder_channels`).
        channels: Channels of the hidden layers.

    Shape:
        n maps, deepest first → (B, 1, H/4, W/4), logits; positive means target

    Raises:
        ModelError: The number of levels differs from ``level_channels``.
    """

    def __init__(self, level_channels: Sequence[int], channels: int = 64) -> None:
        super().__init__()
        share = max(1, channels // len(level_channels))
        self.projections = nn.ModuleList(nn.Conv2d(level, share, kernel_size=1) for level in level_channels)
        self.decide = nn.Sequential(
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(share * len(level_channels), channels, kernel_size=1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(channels, 1, kernel_size=1),
        )
        initialize(self)

    def forward(self, decoder: Sequence[Tensor]) -> Tensor:
        """Domain logit of each location."""
        if len(decoder) != len(self.projections):
            raise ModelError(
                f"expected {len(self.projections)} decoder levels, got {len(decoder)}; "
                "build the classifier from the network's decoder_channels"
            )
        size = decoder[-2 if len(decoder) > 1 else -1].shape[-2:]
        parts = []
        for level, projection in zip(decoder, self.projections, strict=True):
            projected = projection(_bounded(level))  # (B, share, h, w)
            parts.append(functional.interpolate(projected, size=size, mode="bilinear"))  # (B, share, H/4, W/4)
        logits: Tensor = self.decide(torch.cat(parts, dim=1))  # (B, 1, H/4, W/4)
        return logits


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
    """Gradient reversal layer: identity in the forward pass, gradient times ``-strength`` in the backward pass.

    Between segmenter and domain classifier it turns the min–max game into one minimization of ``L_seg + L_domain``: the
    classifier descends on L_domain, the segmenter ascends on ``strength`` · L_domain.

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
        raise ModelError(f"expected a reversal strength of 0 or more, got {strength}; the sign is part of the layer")
    reversed_: Tensor = _ReverseGradient.apply(x, strength)
    return reversed_


def _bounded(features: Tensor) -> Tensor:
    """Scale the features of each location so that their root mean square stays below 1: (B, C, h, w) → (B, C, h, w).

    Otherwise the segmenter can defeat a classifier by growing its features, without aligning the labs.
    """
    bounded: Tensor = features / (1 + features.square().mean(dim=1, keepdim=True)).sqrt()
    return bounded
