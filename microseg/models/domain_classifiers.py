"""The two domain classifiers, source lab or target lab: for training only, never part of a saved network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.errors import ModelError
from microseg.models.blocks import initialize

__all__ = ["FeatureDomainClassifier", "ImageDomainClassifier"]

_SLOPE = 0.2


class ImageDomainClassifier(nn.Module):
    """D_img: one decision an image, from the pyramid pooling module's output.

    No batch normalization: a batch of one domain would give itself away by its statistics.

    Args:
        in_channels: Filters of the pyramid (`PyramidSegmenter.pyramid_channels`).
        channels: Filters inside.

    Shape:
        (B, in_filters, h, w) → (B, 1), logits; positive means target
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
        x = self.convolutions(_bounded(pyramid))  # (B, filters, h, w)
        logits: Tensor = self.decide(x.mean(dim=(2, 3)))  # (B, 1)
        return logits


class FeatureDomainClassifier(nn.Module):
    """D_feat: one decision a location, from the fusion of all decoder levels.

    Every level is projected by a 1×1 convolution, brought to the size of the last but one level (1/4 of the input)
    and concatenated. Only 1×1 convolutions follow: the decoder's features have seen the surroundings already, and each
    location is judged by itself.

    Args:
        level_channels: Filters of the decoder levels, deepest first (`PyramidSegmenter.decoder_channels`).
        channels: Filters inside.

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
                "build the classifier from the network's decoder_filters"
            )
        size = decoder[-2 if len(decoder) > 1 else -1].shape[-2:]
        parts = []
        for level, projection in zip(decoder, self.projections, strict=True):
            projected = projection(_bounded(level))  # (B, share, h, w)
            parts.append(functional.interpolate(projected, size=size, mode="bilinear"))  # (B, share, H/4, W/4)
        logits: Tensor = self.decide(torch.cat(parts, dim=1))  # (B, 1, H/4, W/4)
        return logits


def _bounded(features: Tensor) -> Tensor:
    """Each location's features, shortened so that their root mean square stays below 1: (B, C, h, w) → (B, C, h, w).

    A segmenter that plays against a classifier of plain features can win by making them ever larger, which says nothing
    of the labs.
    """
    bounded: Tensor = features / (1 + features.square().mean(dim=1, keepdim=True)).sqrt()
    return bounded
