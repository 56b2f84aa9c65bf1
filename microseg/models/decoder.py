"""The decoder: blocks that mirror the encoder's, with skip connections."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.errors import ModelError
from microseg.models.layers import ConvBlock, initialize

__all__ = ["PyramidDecoder"]


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
                x = functional.interpolate(
                    x, scale_factor=2.0, mode="bilinear"
                )  # (B, previous, h, w), size of the skip
            x = torch.cat((x, encoded.pop()), dim=1)  # (B, previous + skip, h, w)
            x = block(x)  # (B, channels[i], h, w)
            levels.append(x)
        return tuple(levels)
