"""The decoder: blocks that mirror the encoder's, with skip connections."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.errors import ModelError
from microseg.models.blocks import ConvBlock, initialize

__all__ = ["PyramidDecoder", "mirrored_channels"]


def mirrored_channels(encoder: str, encoder_channels: tuple[int, ...]) -> tuple[int, ...]:
    """Decoder filters, deepest first, that follow the encoder's.

    Own blocks are mirrored one to one. Classifier bodies are much wider than a decoder has to be: half their filters,
    within 32..256, and 16 at the finest level, which has most of the pixels and of the cost.

    Args:
        encoder: Name of the encoder.
        encoder_channels: Filters of its levels, finest first.
    """
    if encoder == "blocks":
        return encoder_channels[::-1]
    return (*(min(256, max(32, channels // 2)) for channels in encoder_channels[:0:-1]), 16)


class PyramidDecoder(nn.Module):
    """Decoder blocks Dn…D1: concat with the same-size encoder output, conv3×3, conv3×3, upsample ×2.

    The level maps returned are those before their upsampling; `PyramidSegmenter` upsamples the last one's logits
    instead of its features, which is the same (both are linear, and the bilinear weights sum to one) at a fraction of
    the cost.

    Args:
        encoder_channels: Filters of the encoder's levels, finest first.
        pyramid_channels: Filters of the pyramid pooling module's output.
        channels: Filters of Dn…D1, deepest first; as many as the encoder has levels.

    Shape:
        n encoder maps and (B, pyramid_filters, h, w) → n maps, deepest first

    Raises:
        ModelError: The number of filters differs from the encoder's depth.
    """

    def __init__(self, encoder_channels: tuple[int, ...], pyramid_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        if len(channels) != len(encoder_channels):
            raise ModelError(
                f"expected {len(encoder_channels)} decoder_filters, one per encoder level, got {len(channels)}; "
                "give as many, or leave them out"
            )
        before = (pyramid_channels, *channels[:-1])
        skips = encoder_channels[::-1]
        self.blocks = nn.ModuleList(
            ConvBlock(previous + skip, after) for previous, skip, after in zip(before, skips, channels, strict=True)
        )
        initialize(self)

    def forward(self, encoded: list[Tensor], pyramid: Tensor) -> tuple[Tensor, ...]:
        """Outputs of Dn…D1. The list of encoder maps is empty afterwards: each is let go once it is used."""
        levels: list[Tensor] = []
        x = pyramid
        for block in self.blocks:
            if levels:
                x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")  # (B, previous, h, w), skip's size
            x = torch.cat((x, encoded.pop()), dim=1)  # (B, previous + skip, h, w)
            x = block(x)  # (B, filters[i], h, w)
            levels.append(x)
        return tuple(levels)
