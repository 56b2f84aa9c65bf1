"""What every training method offers to the one loop."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from microseg.models.network import PyramidSegmenter

__all__ = ["Losses", "TrainingMethod", "moving_average"]

Losses = dict[str, torch.Tensor]
"""Scalars by name; ``total`` is the one that is minimized, the others are only reported."""


class TrainingMethod(nn.Module, ABC):
    """A network, what is trained beside it, and the losses of one step.

    It is one module, and a step is its ``forward``, so that several processes can share it as they share any module.

    Args:
        network: the segmenter to train; it is changed.
        average: decay of the moving average of the segmenter's weights; 0 keeps none.
    """

    def __init__(self, network: PyramidSegmenter, average: float) -> None:
        super().__init__()
        self.network = network.requires_grad_(True)  # one that another training gave out has its gradients off
        self.average = average
        self.averaged = copy.deepcopy(network).requires_grad_(False) if average else None

    @abstractmethod
    def batch(self, step: int, *, rank: int, world: int) -> Any:
        """The inputs of a step, on the CPU; a pure function of the step."""

    @abstractmethod
    def forward(self, batch: Any, progress: float) -> Losses:
        """The losses of a step; ``progress`` is the share of the training that lies behind, 0..1."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters to optimize, as PyTorch's optimizers take them."""

    def before_step(self, progress: float, fabric: Fabric) -> None:
        """Prepare what the next batches are drawn from."""

    def after_step(self, step: int) -> None:
        """Follow the network after the optimizer has changed it."""
        if self.averaged is not None:
            moving_average(self.averaged, self.network, min(self.average, (1 + step) / (10 + step)))

    def result(self) -> PyramidSegmenter:
        """The segmenter that training is for, as it is now: the averaged one where an average is kept."""
        return self.network if self.averaged is None else self.averaged


@torch.no_grad()
def moving_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Move an average of weights and batch-norm statistics towards the current ones: a ← d·a + (1 − d)·c, in place.

    Args:
        average: the module that holds the average.
        current: a module of the same architecture.
        decay: d in 0..1. Counters are copied.
    """
    _lerp(average.parameters(), current.parameters(), decay)
    _lerp(average.buffers(), current.buffers(), decay)


def _lerp(averages: Iterable[torch.Tensor], currents: Iterable[torch.Tensor], decay: float) -> None:
    pairs = list(zip(averages, currents, strict=True))
    moving = [pair for pair in pairs if pair[0].dtype.is_floating_point]
    if moving:
        torch._foreach_lerp_([mean for mean, _ in moving], [now for _, now in moving], 1 - decay)  # hundreds at once
    for mean, now in pairs:
        if not mean.dtype.is_floating_point:
            mean.copy_(now)
