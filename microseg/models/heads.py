"""Prediction heads, the extension point ``microseg.heads``.

The head named in ``network.head`` turns the decoder's maps into a prediction, and owns what belongs to it: the training
loss and the class probabilities. To add one, write a subclass of `Head` and declare it in ``pyproject.toml``::

    [project.entry-points."microseg.heads"]
    my_head = "my_package:MyHead"
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from microseg.models.losses import interior_loss, segmentation_loss

__all__ = ["Head", "InstanceHead", "SemanticHead"]

_GAIN = 5.0
"""Of the logit of the interior, which otherwise stays near 0 in trainings of some hundred steps."""


class Head(nn.Module, ABC):
    """Base class of prediction heads.

    Args:
        decoder_channels: Channels of the decoder levels, deepest first.
        classes: Number of classes K, background first.

    Attributes:
        maps: Names of the maps that `outputs` has beside the class probabilities.
    """

    maps: ClassVar[tuple[str, ...]] = ()

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

    def outputs(self, prediction: Tensor) -> Tensor:
        """Class probabilities, and after them the head's ``maps``, in 0..1: (B, P, H, W) → (B, K + M, H, W)."""
        return self.probabilities(prediction)

    def instance_loss(self, prediction: Tensor, interior: Tensor) -> Tensor:
        """Training loss of the maps, for images with instance labels; 0 for a head without maps.

        Args:
            prediction: (B, P, H, W), at input size.
            interior: (B, H, W), how far each pixel lies inside its object, 0..1; NaN where unknown.

        Returns:
            A scalar.
        """
        del interior
        return 0 * prediction.sum()


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


class InstanceHead(SemanticHead):
    """Class logits, and one logit for the interior of objects, by 1×1 convolutions of the finest level; named
    ``instance``.

    The interior is 0 at the border of an object, also where it touches another one, and 1 some pixels inside. Its
    regions are the seeds by which `separate_objects` tells touching objects apart. It is shared by all classes, which
    the logits tell apart.

    Shape:
        n maps, the last (B, C, h, w) → (B, K + 1, h, w)

    Reference:
        Distances to the border as targets: Naylor et al., "Segmentation of nuclei in histopathology images by deep
        regression of the distance map", IEEE TMI 2019.

    Deviation:
        The distance is capped after a few pixels, so that a seed is to grow by these only and objects can be separated
        strip by strip; it is learned by cross entropy.
    """

    maps = ("interior",)

    def __init__(self, decoder_channels: Sequence[int], classes: int) -> None:
        super().__init__(decoder_channels, classes)
        self.interior_logit = nn.Conv2d(decoder_channels[-1], 1, kernel_size=1)

    def forward(self, decoder: Sequence[Tensor]) -> Tensor:
        """Logits of the classes and of the interior, at the finest level."""
        interior = _GAIN * self.interior_logit(decoder[-1])
        return torch.cat([self.classify(decoder[-1]), interior], dim=1)  # (B, K + 1, h, w)

    def loss(self, prediction: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
        """L_seg of the classes."""
        return super().loss(prediction[:, : self.classes], masks, dice_weight)

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Softmax over the classes."""
        return super().probabilities(prediction[:, : self.classes])

    def outputs(self, prediction: Tensor) -> Tensor:
        """Class probabilities, and the interior: (B, K + 1, H, W)."""
        return torch.cat([self.probabilities(prediction), prediction[:, self.classes :].sigmoid()], dim=1)

    def instance_loss(self, prediction: Tensor, interior: Tensor) -> Tensor:
        """Cross entropy to the interior."""
        return interior_loss(prediction[:, self.classes], interior)
