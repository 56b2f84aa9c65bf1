"""Layers that encoder and decoder are built of: convolution blocks and the pyramid pooling module."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ConvBlock", "PyramidPooling", "conv_bn_relu", "initialize"]


def conv_bn_relu(in_channels: int, channels: int) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU; the size stays the same."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class ConvBlock(nn.Sequential):
    """Two 3×3 convolutions, each with batch normalization and ReLU.

    Shape:
        (B, in_channels, h, w) → (B, channels, h, w)
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(conv_bn_relu(in_channels, channels), conv_bn_relu(channels, channels))


class PyramidPooling(nn.Module):
    """Pyramid pooling module: pool to several grids, project each, upsample, concatenate with the input and fuse.

    The coarsest grid covers the whole input, so the output depends on the size of the image or tile.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output; each grid gets an equal part of them.
        bins: Grid sizes.

    Shape:
        (B, in_channels, h, w) → (B, channels, h, w)

    Reference:
        Zhao et al., "Pyramid scene parsing network", CVPR 2017.

    Deviation:
        The pooled branches have a bias instead of batch normalization: a 1×1 grid has one value per image and channel,
        so its batch statistics are noise for small batches and undefined for a single image.
    """

    def __init__(self, in_channels: int, channels: int, bins: tuple[int, ...]) -> None:
        super().__init__()
        branch_channels = max(1, channels // len(bins))
        self.bins = bins
        self.projections = nn.ModuleList(nn.Conv2d(in_channels, branch_channels, kernel_size=1) for _ in bins)
        self.fuse = conv_bn_relu(in_channels + branch_channels * len(bins), channels)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Add the context of every grid."""
        size = x.shape[-2:]
        branches = [x]
        for grid, projection in zip(self.bins, self.projections, strict=True):
            pooled = functional.adaptive_avg_pool2d(x, grid)  # (B, in_channels, grid, grid)
            projected = functional.relu(projection(pooled))  # (B, branch_channels, grid, grid)
            branches.append(functional.interpolate(projected, size=size, mode="bilinear"))  # (B, branch_channels, h, w)
        fused: Tensor = self.fuse(torch.cat(branches, dim=1))  # (B, channels, h, w)
        return fused


def initialize(module: nn.Module) -> None:
    """He initialization of every convolution and linear layer in ``module``; biases become zero.

    Reference:
        He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
