"""The statistics of batch normalization: read, measured on chosen images, mixed, written, compared.

They hold much of what a network knows of a lab's stain and scanner, and can be measured on images without labels.
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

_LARGEST_TERM = 20.0  # of the distance, so that one dead channel does not decide
_FIRST_LAYERS = 0.4  # of the layers: their differences are of color, which changes at every scale alike


class NormStatistics(NamedTuple):
    """Mean and variance of each channel, of each batch normalization of a network, in order.

    Attributes:
        means: (C,) for each layer.
        variances: (C,) for each layer.
    """

    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


def read_statistics(network: nn.Module) -> NormStatistics:
    """A copy of a network's running statistics."""
    layers = _layers(network)
    return NormStatistics(
        tuple(_known(layer.running_mean).clone() for layer in layers),
        tuple(_known(layer.running_var).clone() for layer in layers),
    )


@torch.no_grad()
def write_statistics(network: nn.Module, statistics: NormStatistics) -> None:
    """Replace a network's running statistics, in place."""
    for layer, mean, variance in zip(_layers(network), *statistics, strict=True):
        _known(layer.running_mean).copy_(mean)
        _known(layer.running_var).copy_(variance)


@torch.no_grad()
def measure_statistics(network: nn.Module, images: Iterable[Tensor]) -> NormStatistics:
    """What the statistics of a network are on chosen images (AdaBN). The network is not changed.

    Each image passes by itself, normalized by its own statistics, and all count alike; the variance is that within the
    images and that between them.

    Args:
        network: any network.
        images: (1, 3, H, W) each, on the network's device; sizes may differ.

    Raises:
        TrainingError: when there is no image.

    Reference:
        Li et al., "Revisiting batch normalization for practical domain adaptation", 2017.
    """
    network = copy.deepcopy(network).eval()
    layers = _layers(network)
    for layer in layers:
        layer.momentum = 1.0  # the last image's own statistics
        layer.train()
    seen = []
    for image in images:
        network(image)
        seen.append(read_statistics(network))
    if not seen:
        raise TrainingError("Expected at least one image to measure statistics on, got none: give more images.")
    means = [torch.stack(each) for each in zip(*(one.means for one in seen), strict=True)]  # (N, C) each
    within = [torch.stack(each) for each in zip(*(one.variances for one in seen), strict=True)]
    return NormStatistics(
        tuple(mean.mean(0) for mean in means),
        tuple(v.mean(0) + m.var(0, unbiased=False) for v, m in zip(within, means, strict=True)),
    )


def mix_statistics(first: NormStatistics, second: NormStatistics, share: float) -> NormStatistics:
    """The statistics of a mixture of two sets of images.

    Args:
        first: of one set.
        second: of the other.
        share: of the second set in the mixture, 0..1.
    """
    means, variances = [], []
    for m1, v1, m2, v2 in zip(first.means, first.variances, second.means, second.variances, strict=True):
        mean = torch.lerp(m1, m2, share)
        means.append(mean)
        variances.append(torch.lerp(v1 + m1**2, v2 + m2**2, share) - mean**2)
    return NormStatistics(tuple(means), tuple(variances))


def statistics_distance(reference: NormStatistics, other: NormStatistics) -> float:
    """How far the means of one set of images lie from another's: the mean of (m₁ − m₂)² / v₁ over channels and layers.

    The first layers, which see little more than color, are left out.

    Args:
        reference: whose variances are the measure.
        other: what is compared.

    Returns:
        0 for equal means; no unit.
    """
    first = int(_FIRST_LAYERS * len(reference.means))
    terms = [
        ((m1 - m2) ** 2 / (v1 + 1e-4)).clamp(max=_LARGEST_TERM).mean()
        for m1, v1, m2 in zip(reference.means[first:], reference.variances[first:], other.means[first:], strict=True)
    ]
    return float(torch.stack(terms).mean()) if terms else 0.0


def freeze_statistics(network: nn.Module) -> None:
    """Let every batch normalization use its running statistics and leave them, also in training."""
    for layer in _layers(network):
        layer.eval()


def _layers(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _known(buffer: Tensor | None) -> Tensor:
    assert buffer is not None  # none of our networks has layers without running statistics
    return buffer
