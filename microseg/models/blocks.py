"""The convolution blocks that encoder and decoder are made of."""

from torch import Tensor, nn

__all__ = ["ConvBlock", "EncoderBlock", "conv_bn_relu", "initialize"]


def conv_bn_relu(in_channels: int, channels: int) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU; size is kept."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class ConvBlock(nn.Sequential):
    """Two 3×3 convolutions, each with batch normalization and ReLU.

    Shape:
        (B, in_filters, h, w) → (B, filters, h, w)
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(conv_bn_relu(in_channels, channels), conv_bn_relu(channels, channels))


class EncoderBlock(nn.Module):
    """One block E of the encoder: conv3×3, conv3×3, maxpool ×2.

    Shape:
        (B, in_filters, h, w) → (B, filters, h/2, w/2)
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convolutions = ConvBlock(in_channels, channels)
        self.pool = nn.MaxPool2d(kernel_size=2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve twice, halve the size."""
        pooled: Tensor = self.pool(self.convolutions(x))  # (B, filters, h/2, w/2)
        return pooled


def initialize(module: nn.Module) -> None:
    """He initialization of every convolution and linear layer inside ``module``, biases zero.

    Reference:
        He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
