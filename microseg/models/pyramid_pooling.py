"""The pyramid pooling module: context at several grid sizes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.models.blocks import conv_bn_relu, initialize

__all__ = ["PyramidPooling"]


class PyramidPooling(nn.Module):
    """Pools to several grids, projects each, upsamples, concatenates with the input and fuses.

    The coarsest grid sees the whole input, so the output depends on the size of the image or tile given.

    Args:
        in_channels: Filters of the input.
        channels: Filters of the output; each grid gets an equal share of them.
        bins: Grid sizes.

    Shape:
        (B, in_filters, h, w) → (B, filters, h, w)

    Reference:
        Zhao et al., "Pyramid scene parsing network", CVPR 2017.

    Deviation:
        The pooled branches have a bias instead of batch normalization: a 1×1 grid has one value per image and channel,
        so with small batches its normalization is noise, and with one image impossible.
    """

    def __init__(self, in_channels: int, channels: int, bins: tuple[int, ...]) -> None:
        super().__init__()
        share = max(1, channels // len(bins))
        self.bins = bins
        self.projections = nn.ModuleList(nn.Conv2d(in_channels, share, kernel_size=1) for _ in bins)
        self.fuse = conv_bn_relu(in_channels + share * len(bins), channels)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Add the context of every grid."""
        size = x.shape[-2:]
        parts = [x]
        for grid, projection in zip(self.bins, self.projections, strict=True):
            pooled = functional.adaptive_avg_pool2d(x, grid)  # (B, in_filters, grid, grid)
            projected = functional.relu(projection(pooled))  # (B, share, grid, grid)
            parts.append(functional.interpolate(projected, size=size, mode="bilinear"))  # (B, share, h, w)
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))  # (B, filters, h, w)
        return fused
