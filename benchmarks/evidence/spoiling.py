"""Bad networks, made from good ones without any training, always the same."""

import copy
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from microseg.errors import ModelError
from microseg.models.config import NetworkConfig
from microseg.models.heads import SemanticHead
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.domain_shift import to_batch
from microseg.training.adaptation.normalization import measure_statistics, write_statistics

__all__ = ["between", "noisy", "tilted", "untrained", "with_statistics_of"]

_LEAST_VARIANCE = 1e-5  # of a batch normalization, where a line between two networks would lead below 0


@torch.no_grad()
def tilted(network: PyramidSegmenter, label: int, amount: float) -> PyramidSegmenter:
    """The network with one class favored everywhere.

    Args:
        network: not changed.
        label: the class.
        amount: added to its logit: a few give it too much area, many all of it.
    """
    result = copy.deepcopy(network)
    assert isinstance(result.head, SemanticHead)
    bias = result.head.classify.bias
    assert bias is not None
    bias[label] += amount
    return result


def between(first: PyramidSegmenter, second: PyramidSegmenter, share: float) -> PyramidSegmenter:
    """The network on the line through two: ``first + share · (second − first)``, statistics included.

    Args:
        first: where ``share`` is 0.
        second: where it is 1.
        share: above 1 it goes on beyond the second.

    Raises:
        ModelError: when the two differ in architecture.
    """
    if first.config != second.config:
        raise ModelError(f"Expected two networks of one architecture, got {first.config} and {second.config}.")
    result, other = copy.deepcopy(first), second.state_dict()
    tensors = result.state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensor.add_(share * (other[name] - tensor))
        if name.endswith("running_var"):
            tensor.clamp_(min=_LEAST_VARIANCE)
    return result


@torch.no_grad()
def noisy(network: PyramidSegmenter, amount: float, seed: int) -> PyramidSegmenter:
    """The network with normal noise on the weights of every convolution.

    Args:
        network: not changed.
        amount: standard deviation of the noise, as a multiple of that of the layer's weights.
        seed: of the noise.
    """
    result, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    for weights in result.parameters():
        if weights.ndim > 1:
            weights.add_(amount * weights.std() * torch.randn(weights.shape, generator=generator))
    return result


def untrained(config: NetworkConfig, seed: int) -> PyramidSegmenter:
    """A network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PyramidSegmenter(config).eval()


def with_statistics_of(network: PyramidSegmenter, images: Iterable[npt.NDArray[np.uint8]]) -> PyramidSegmenter:
    """The network with its normalization statistics measured anew on other images.

    Args:
        network: not changed.
        images: of whatever lab.

    Shape:
        (H, W, 3) each
    """
    result, device = copy.deepcopy(network), next(network.parameters()).device
    write_statistics(result, measure_statistics(network, (to_batch(image, device) for image in images)))
    return result
