"""Training methods: what the training loop requires of one, and supervised training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from microseg.config.training_params import FitSettings
from microseg.datasets.sampling import Crops, CropSampler, Sample, step_generator
from microseg.errors import TrainingError
from microseg.models.network import PyramidSegmenter
from microseg.training.color_augmentation import Jitter, apply_jitter, draw_jitter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "DrawnCrops",
    "Losses",
    "Supervised",
    "TrainingMethod",
    "instance_losses",
    "require_masks",
]

Losses = dict[str, Tensor]
"""Scalar losses by name; ``total`` is minimized, the others are only reported."""


class DrawnCrops(NamedTuple):
    """Crops as they are drawn, with the random numbers of their color changes.

    Attributes:
        crops: Crops with images and masks as uint8.
        jitter: Random numbers of the color jitter; None for none.
    """

    crops: Crops
    jitter: Jitter | None

    def changed(self, generator: torch.Generator) -> Crops:
        """The crops as a network takes them, with color jitter; computed on their device."""
        crops = self.crops.to_float()
        if self.jitter is None:
            return crops
        return crops._replace(images=apply_jitter(crops.images, self.jitter, generator))


class TrainingMethod(nn.Module, ABC):
    """A network, what is trained with it, and the losses of one step.

    It is one module whose ``forward`` is a step, so that several processes can share it like any other module.

    A step is ``forward(augment(batch(step, …), step, …), progress)``. On a GPU, neither of the last two may wait for
    it: they take no value from a tensor (``item``, ``float``, ``if``), index with no boolean mask and move nothing.

    Args:
        network: Segmenter to train; it is changed.
        settings: Settings of the training.

    Attributes:
        averaged: Exponential moving average (EMA) of the network's weights and statistics; None where
            ``settings.ema_decay`` is 0.
    """

    def __init__(self, network: PyramidSegmenter, settings: FitSettings) -> None:
        super().__init__()
        self.settings = settings
        self.network = network.requires_grad_(True)  # the EMA of an earlier training has its gradients off
        self.averaged = copy.deepcopy(network).requires_grad_(False) if settings.ema_decay else None
        self._pairs: _Pairs | None = None

    @abstractmethod
    def batch(self, step: int, *, rank: int, world: int) -> Any:
        """Draw the inputs of a step, on the CPU; a pure function of the step.

        It runs in other processes, ahead of the training, and sees the method as it was after `before_step`.
        """

    def augment(self, batch: Any, step: int, *, rank: int) -> Any:  # noqa: ARG002 (of methods that are random here)
        """Complete the inputs of a step on the device of the training; a function of batch, step and device."""
        return batch

    def inputs(self, step: int, *, rank: int = 0, world: int = 1) -> Any:
        """Inputs of a step, drawn and completed on the CPU."""
        return self.augment(self.batch(step, rank=rank, world=world), step, rank=rank)

    @abstractmethod
    def forward(self, batch: Any, progress: float) -> Losses:
        """Compute the losses of a step; ``progress`` is the completed fraction of the training, 0..1."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters to optimize, as PyTorch's optimizers take them; the segmenter's first."""
        return [{"params": list(self.network.parameters()), "lr": self.settings.learning_rate}]

    def data_round(self, progress: float) -> int:  # noqa: ARG002 (of methods whose data changes)
        """Number of the data that batches are drawn from; `before_step` is called when it changes."""
        return 0

    def before_step(self, progress: float, fabric: Fabric) -> None:
        """Prepare the data that the next batches are drawn from: before the first step, and when it changes."""

    def after_step(self, step: int) -> None:
        """Update the EMA after the optimizer's step: a ← d·a + (1 − d)·c; integer counters are copied."""
        if self.averaged is None:
            return
        if self._pairs is None:
            self._pairs = _Pairs.of(self.averaged, self.network)
        # follows quickly at first, when the weights change most
        decay = min(self.settings.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._pairs.averages, self._pairs.currents, 1 - decay)
            if self._pairs.counters:
                torch._foreach_copy_(self._pairs.counters, self._pairs.counted)

    def result(self) -> PyramidSegmenter:
        """The trained segmenter as it is now: its EMA, where there is one."""
        return self.network if self.averaged is None else self.averaged

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._pairs = None  # to another device or type: buffers become other tensors
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _Pairs(NamedTuple):
    """Tensors of an EMA and those of the network, in the same order; collecting them takes longer than the update."""

    averages: list[Tensor]
    currents: list[Tensor]
    counters: list[Tensor]
    counted: list[Tensor]

    @classmethod
    def of(cls, averaged: nn.Module, network: nn.Module) -> _Pairs:
        """All parameters and buffers."""
        own, others = ([*module.parameters(), *module.buffers()] for module in (averaged, network))
        pairs = list(zip(own, others, strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        return cls(*([pair[n] for pair in chosen] for chosen in (floating, counters) for n in (0, 1)))


class Supervised(TrainingMethod):
    """Supervised training: cross entropy and Dice on labelled crops.

    Args:
        network: Segmenter to train; it is changed.
        labelled: Sampler of crops with masks.
        settings: Settings of the training.

    Raises:
        TrainingError: The sampler has images without masks.
    """

    def __init__(self, network: PyramidSegmenter, labelled: CropSampler, settings: FitSettings) -> None:
        super().__init__(network, settings)
        require_masks(labelled.samples)
        self.labelled = labelled

    def batch(self, step: int, *, rank: int, world: int) -> DrawnCrops:
        """Crops with masks, and the random numbers of their color jitter."""
        crops = self.labelled.draw_bytes(step, rank=rank, world=world)
        generator = step_generator(self.labelled.seed, step, rank)
        return DrawnCrops(crops, draw_jitter(len(crops.images), self.settings.source_color_jitter, generator))

    def augment(self, batch: DrawnCrops, step: int, *, rank: int) -> Crops:
        """Crops with color jitter."""
        return batch.changed(step_generator(self.labelled.seed, step, rank, device=batch.crops.images.device))

    def forward(self, batch: Crops, progress: float) -> Losses:  # noqa: ARG002 (the same at every step)
        """L_seg = CE + α (1 − Dice), and the loss of the instances where they are labelled."""
        assert batch.masks is not None
        prediction = self.network(batch.images)
        parts = {"segmentation": self.network.head.loss(prediction, batch.masks, self.settings.dice_weight)}
        parts |= instance_losses(self.network, prediction, batch)
        total = torch.stack(list(parts.values())).sum()
        return {"total": total, **{name: value.detach() for name, value in parts.items()}}


def instance_losses(network: PyramidSegmenter, prediction: Tensor, crops: Crops) -> Losses:
    """Loss of the instances, named ``instances``; none where the network does not separate them or none is labelled.

    Args:
        network: The network.
        prediction: Its prediction for the crops, (B, P, S, S).
        crops: The crops.
    """
    if crops.interior is None or not network.head.maps:
        return {}
    return {"instances": network.head.instance_loss(prediction, crops.interior)}


def require_masks(source: Sequence[Sample]) -> None:
    """Check that labelled images have masks.

    Raises:
        TrainingError: One has none.
    """
    missing = [sample.image.name for sample in source if sample.mask is None]
    if missing:
        raise TrainingError(
            f"Expected a mask for every image of the labelled labs, {len(missing)} have none ({missing[0]}…): "
            "correct manifest.csv of their dataset."
        )
