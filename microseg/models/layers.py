"""Layers of the segmenter: convolution blocks, the pyramid pooling module and the decoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.errors import ModelError

__all__ = ["ConvBlock", "PyramidDecoder", "PyramidPooling", "conv_bn_relu", "initialize"]


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


class PyramidDecoder(nn.Module):
    """Decoder blocks Dn…D1: concat with the same-size encoder output, conv3×3, conv3×3, upsample ×2.

    The maps returned are those before their upsampling; `PyramidSegmenter` upsamples the logits of the last one instead
    of its features, which is equal (both are linear, and the bilinear weights sum to one) at a fraction of the cost.

    Args:
        encoder_channels: Channels of the encoder's levels, finest first.
        pyramid_channels: Channels of the pyramid pooling module's output.
        channels: Channels of Dn…D1, deepest first; one per encoder level.

    Shape:
        n encoder maps and (B, pyramid_channels, h, w) → n maps, deepest first

    Raises:
        ModelError: The number of channels differs from the encoder's number of levels.
    """

    def __init__(self, encoder_channels: tuple[int, ...], pyramid_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        if len(channels) != len(encoder_channels):
            raise ModelError(
                f"expected {len(encoder_channels)} decoder_channels, one per encoder level, got {len(channels)}; "
                "correct network.decoder_channels, or leave it out"
            )
        before = (pyramid_channels, *channels[:-1])
        skips = encoder_channels[::-1]
        self.blocks = nn.ModuleList(
            ConvBlock(previous + skip, after) for previous, skip, after in zip(before, skips, channels, strict=True)
        )
        initialize(self)

    def forward(self, encoded: list[Tensor], pyramid: Tensor) -> tuple[Tensor, ...]:
        """Outputs of Dn…D1. Empties the list of encoder maps, so that each is freed once it is used."""
        levels: list[Tensor] = []
        x = pyramid
        for block in self.blocks:
            if levels:
                x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")  # (B, previous, h, w)
            x = torch.cat((x, encoded.pop()), dim=1)  # (B, previous + skip, h, w)
            x = block(x)  # (B, channels[i], h, w)
            levels.append(x)
        return tuple(levels)


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
