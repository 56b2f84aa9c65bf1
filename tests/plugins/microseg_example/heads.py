"""A prediction head that uses all levels of the decoder."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from microseg.models.heads import Head
from microseg.models.losses import segmentation_loss


class MultiLevelHead(Head):
    """Sum of the logits of all levels."""

    def __init__(self, decoder_channels: Sequence[int], classes: int) -> None:
        super().__init__(decoder_channels, classes)
        self.levels = nn.ModuleList(nn.Conv2d(channels, classes, kernel_size=1) for channels in decoder_channels)

    def forward(self, decoder: Sequence[Tensor]) -> Tensor:
        """Logits at the finest level."""
        size = decoder[-1].shape[-2:]
        logits = [layer(level) for layer, level in zip(self.levels, decoder, strict=True)]
        return sum(functional.interpolate(level, size=size, mode="bilinear") for level in logits)

    def loss(self, prediction: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
        """Cross entropy and Dice."""
        return segmentation_loss(prediction, masks, dice_weight)

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Softmax over the classes."""
        return prediction.softmax(dim=1)
