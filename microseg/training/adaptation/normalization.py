"""Batch-norm statistics: read, measure on images, mix, write, compare.

They depend on a lab's stain and scanner, and can be measured on images without labels.
"""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from microseg.errors import TrainingError

__all__ = [
    "NormStatistics",
    "freeze_statistics",
    "measure_statistics",
    "mix_statistics",
    "read_statistics",
    "statistics_distance",
    "write_statistics",
]

_MAX_TERM = 20.0  # of the distance, so that a dead channel does not dominate it
_COLOR_LAYERS = 0.4  # fraction of the layers, from the first: they respond to color, which is equal at every scale


class NormStatistics(NamedTuple):
    """Mean and variance of each channel of each batch normalization of a network, in order.

    Attributes:
        means: (C,) for each layer, on the CPU.
        variances: (C,) for each layer, on the CPU.
    """

    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


def read_statistics(network: nn.Module) -> NormStatistics:
    """Copy a network's running statistics, to the CPU: they are compared and mixed with those of networks elsewhere."""
    layers = _layers(network)
    return NormStatistics(
        tuple(_known(layer.running_mean).to("cpu", copy=True) for layer in layers),
        tuple(_known(layer.running_var).to("cpu", copy=True) for layer in layers),
    )


@torch.no_grad()
def write_statistics(network: nn.Module, statistics: NormStatistics) -> None:
    """Replace a network's running statistics, in place."""
    for layer, mean, variance in zip(_layers(network), *statistics, strict=True):
        _known(layer.running_mean).copy_(mean)
        _known(layer.running_var).copy_(variance)


@torch.no_grad()
def measure_statistics(network: nn.Module, images: Iterable[Tensor]) -> NormStatistics:
    """Measure the statistics of a network on images (AdaBN); the network is not changed.

    Each image passes alone, normalized by its own statistics, and has the same weight; the variance is the one within
    images plus the one between them.

    Args:
        network: Any network.
        images: (1, 3, H, W) each, on the network's device; sizes may differ.

    Raises:
        TrainingError: There is no image.

    Reference:
        Li et al., "Revisiting batch normalization for practical domain adaptation", 2017.
    """
    network = copy.deepcopy(network).eval()
    layers = _layers(network)
    for layer in layers:
        layer.momentum = 1.0  # statistics of the last image
        layer.train()
    measured = []
    for image in images:
        network(image)
        measured.append(read_statistics(network))
    if not measured:
        raise TrainingError("Expected at least one image to measure statistics on, got none: give more images.")
    means = [torch.stack(each) for each in zip(*(one.means for one in measured), strict=True)]  # (N, C) each
    within = [torch.stack(each) for each in zip(*(one.variances for one in measured), strict=True)]
    return NormStatistics(
        tuple(mean.mean(0) for mean in means),
        tuple(v.mean(0) + m.var(0, unbiased=False) for v, m in zip(within, means, strict=True)),
    )


def mix_statistics(first: NormStatistics, second: NormStatistics, fraction: float) -> NormStatistics:
    """Statistics of a mixture of two sets of images.

    Args:
        first: Statistics of one set.
        second: Statistics of the other.
        fraction: Fraction of the second set in the mixture, 0..1.
    """
    means, variances = [], []
    for m1, v1, m2, v2 in zip(first.means, first.variances, second.means, second.variances, strict=True):
        mean = torch.lerp(m1, m2, fraction)
        means.append(mean)
        variances.append(torch.lerp(v1 + m1**2, v2 + m2**2, fraction) - mean**2)
    return NormStatistics(tuple(means), tuple(variances))


def statistics_distance(reference: NormStatistics, other: NormStatistics) -> float:
    """Distance between the means of two sets of images: (m₁ − m₂)² / v₁, averaged over channels and layers.

    The first layers, which respond mainly to color, are left out.

    Args:
        reference: Statistics whose variances scale the distance.
        other: Statistics to compare.

    Returns:
        0 for equal means; without unit.
    """
    first = int(_COLOR_LAYERS * len(reference.means))
    terms = [
        ((m1 - m2) ** 2 / (v1 + 1e-4)).clamp(max=_MAX_TERM).mean()
        for m1, v1, m2 in zip(reference.means[first:], reference.variances[first:], other.means[first:], strict=True)
    ]
    return float(torch.stack(terms).mean()) if terms else 0.0


def freeze_statistics(network: nn.Module) -> None:
    """Let every batch normalization use its running statistics without updating them, also in training."""
    for layer in _layers(network):
        layer.eval()


def _layers(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _known(buffer: Tensor | None) -> Tensor:
    assert buffer is not None  # every batch normalization of the networks here has running statistics
    return buffer
