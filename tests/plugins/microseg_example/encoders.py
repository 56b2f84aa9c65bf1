"""An encoder of two strided convolutions."""

from torch import Tensor, nn

from microseg.config.training_params import ArchitectureSettings
from microseg.models.encoders import Encoder


class StridedEncoder(Encoder):
    """Levels of 8 and 16 channels at strides 2 and 4."""

    def __init__(self, settings: ArchitectureSettings) -> None:
        super().__init__(settings)
        self.channels, self.strides = (8, 16), (2, 4)
        self.first = nn.Sequential(nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of both levels."""
        finest = self.first(x)
        return [finest, self.second(finest)]
