"""Prediction heads, the extension point ``microseg.heads``.

The head named in ``network.head`` turns the decoder's maps into a prediction, and owns what belongs to it: the training
loss and the class probabilities. To add one, write a subclass of `Head` and declare it in ``pyproject.toml``::

    [project.entry-points."microseg.heads"]
    my_head = "my_package:MyHead"
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from microseg.models.losses import segmentation_loss

__all__ = ["Head", "SemanticHead"]


class Head(nn.Module, ABC):
    """Base class of prediction heads.

    Args:
        decoder_channels: Channels of the decoder levels, deepest first.
        classes: Number of classes K, background first.
    """

    def __init__(self, decoder_channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.decoder_channels, self.classes = tuple(decoder_channels), classes

    @abstractmethod
    def forward(self, decoder: Sequence[Tensor]) -> Tensor:
        """Predict from the decoder's maps.

        Args:
            decoder: Output of each decoder level, deepest first.

        Returns:
            (B, P, h, w) at the size of the finest level; the network upsamples it to the size of its input. P is any
            number of channels.
        """

    @abstractmethod
    def loss(self, prediction: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
        """Training loss.

        Args:
            prediction: (B, P, H, W), at input size.
            masks: (B, H, W), class indices; 255 is ignored.
            dice_weight: α ≥ 0, weight of the Dice term.

        Returns:
            A scalar.
        """

    @abstractmethod
    def probabilities(self, prediction: Tensor) -> Tensor:
        """Post-process a prediction to class probabilities: (B, P, H, W) → (B, K, H, W), with sum 1 at each pixel."""


class SemanticHead(Head):
    """One logit for each class at each pixel, by a 1×1 convolution of the finest level; named ``semantic``.

    Shape:
        n maps, the last (B, C, h, w) → (B, K, h, w)
    """

    def __init__(self, decoder_channels: Sequence[int], classes: int) -> None:
        super().__init__(decoder_channels, classes)
        self.classify = nn.Conv2d(decoder_channels[-1], classes, kernel_size=1)

    def forward(self, decoder: Sequence[Tensor]) -> Tensor:
        """Logits at the finest level."""
        logits: Tensor = self.classify(decoder[-1])  # (B, K, h, w)
        return logits

    def loss(self, prediction: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
        """L_seg = CE + α · (1 − Dice)."""
        return segmentation_loss(prediction, masks, dice_weight=dice_weight)

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Softmax over the classes."""
        return prediction.softmax(dim=1)
