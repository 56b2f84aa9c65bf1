"""The encoder: own convolution blocks, or the convolutional body of a well-known classifier."""

from typing import Any, Protocol, cast

import timm
from torch import Tensor, nn

from microseg.errors import ModelError
from microseg.models.blocks import EncoderBlock, initialize
from microseg.models.config import NetworkConfig
from microseg.models.encoder_normalization import KNOWN_ENCODERS, timm_name

__all__ = [
    "BlockEncoder",
    "BodyEncoder",
    "Encoder",
    "build_encoder",
    "encoder_channels",
]


class Encoder(Protocol):
    """What the segmenter needs of an encoder.

    Args:
        channels: Filters of each level, finest first; level i has stride 2**(i + 1).
    """

    channels: tuple[int, ...]

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Feature maps of all levels, finest first."""
        ...


class BlockEncoder(nn.Module):
    """Encoder of blocks E1…En.

    Shape:
        (B, 3, H, W) → n maps, the i-th (B, filters[i], H/2**(i+1), W/2**(i+1))
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = channels
        self.blocks = nn.ModuleList(
            EncoderBlock(before, after) for before, after in zip((3, *channels[:-1]), channels, strict=True)
        )
        initialize(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of E1…En."""
        levels = []
        for block in self.blocks:
            x = block(x)  # (B, filters[i], H/2**(i+1), W/2**(i+1))
            levels.append(x)
        return levels


class BodyEncoder(nn.Module):
    """The fully convolutional body of a classifier from timm, with random weights.

    Shape:
        (B, 3, H, W) → one map for each stride 2, 4, 8, …

    Raises:
        ModelError: timm does not know the name, or the body has no level at every stride.

    Deviation:
        VGG19 is the variant with batch normalization (``vgg19_bn``): with random weights plain VGG19 hardly trains.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            body: Any = timm.create_model(timm_name(name), features_only=True, pretrained=False)
        except Exception as error:  # timm raises RuntimeError, AttributeError, AssertionError… by model family
            raise ModelError(
                f"expected an encoder that is 'blocks' or a convolutional body known to timm, got {name!r} ({error}); "
                f"choose one of {', '.join(KNOWN_ENCODERS)}"
            ) from error
        strides, channels = body.feature_info.reduction(), body.feature_info.channels()
        self.used = [level for level, stride in enumerate(strides) if stride >= 2]
        if [strides[level] for level in self.used] != [2 ** (i + 1) for i in range(len(self.used))]:
            raise ModelError(
                f"expected an encoder with one level at each stride 2, 4, 8, …, got {name!r} with strides {strides}; "
                f"choose one of {', '.join(KNOWN_ENCODERS)}"
            )
        self.channels: tuple[int, ...] = tuple(channels[level] for level in self.used)
        self.body = body

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, …"""
        levels = self.body(x)  # each (B, filters[i], H/stride, W/stride)
        return [levels[level] for level in self.used]


def build_encoder(config: NetworkConfig) -> nn.Module:
    """The encoder that the configuration names, with random weights."""
    if config.encoder == "blocks":
        return BlockEncoder(config.channels)
    return BodyEncoder(config.encoder)


def encoder_channels(encoder: nn.Module) -> tuple[int, ...]:
    """Filters of each level, finest first."""
    return cast(Encoder, encoder).channels
