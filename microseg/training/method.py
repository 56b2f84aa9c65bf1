"""Training methods: what the training loop requires of one, and supervised training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from microseg.config.params import FitSettings
from microseg.datasets.sampling import Crops, CropSampler, Sample, step_generator
from microseg.errors import TrainingError
from microseg.models.network import PyramidSegmenter
from microseg.training.color_augmentation import jitter_color

__all__ = ["Losses", "Supervised", "TrainingMethod", "instance_losses", "require_masks"]

Losses = dict[str, Tensor]
"""Scalar losses by name; ``total`` is minimized, the others are only reported."""


class TrainingMethod(nn.Module, ABC):
    """A network, what is trained with it, and the losses of one step.

    It is one module whose ``forward`` is a step, so that several processes can share it like any other module.

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
        self.averaged: AveragedModel | None = None
        if settings.ema_decay:
            self.averaged = AveragedModel(network, use_buffers=True).requires_grad_(False)
            self.averaged.n_averaged.fill_(1)  # of the initial weights; at 0 the first update would replace them

    @abstractmethod
    def batch(self, step: int, *, rank: int, world: int) -> Any:
        """Draw the inputs of a step, on the CPU; a pure function of the step."""

    @abstractmethod
    def forward(self, batch: Any, progress: float) -> Losses:
        """Compute the losses of a step; ``progress`` is the completed fraction of the training, 0..1."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters to optimize, as PyTorch's optimizers take them; the segmenter's first."""
        return [{"params": list(self.network.parameters()), "lr": self.settings.learning_rate}]

    def before_step(self, progress: float, fabric: Fabric) -> None:
        """Prepare the data that the next batches are drawn from."""

    def after_step(self, step: int) -> None:
        """Update the EMA after the optimizer's step."""
        if self.averaged is not None:
            # follows quickly at first, when the weights change most
            self.averaged.multi_avg_fn = _ema(min(self.settings.ema_decay, (1 + step) / (10 + step)))
            self.averaged.update_parameters(self.network)

    def result(self) -> PyramidSegmenter:
        """The trained segmenter as it is now: its EMA, where there is one."""
        return self.network if self.averaged is None else cast(PyramidSegmenter, self.averaged.module)


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

    def batch(self, step: int, *, rank: int, world: int) -> Crops:
        """Crops with masks and color jitter."""
        crops = self.labelled.draw(step, rank=rank, world=world)
        generator = step_generator(self.labelled.seed, step, rank)
        return crops._replace(images=jitter_color(crops.images, self.settings.source_color_jitter, generator))

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


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """Update of an EMA for `AveragedModel`: a ← d·a + (1 − d)·c; integer counters are copied."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], _count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, 1 - decay)
        else:
            torch._foreach_copy_(averages, currents)

    return update
