"""Degraded networks, made of good ones without training, deterministically."""

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

__all__ = ["add_weight_noise", "interpolate", "random_network", "shift_logit", "with_statistics_of_images"]

_MIN_VARIANCE = 1e-5  # of a batch normalization, after extrapolation


@torch.no_grad()
def shift_logit(network: PyramidSegmenter, label: int, amount: float) -> PyramidSegmenter:
    """Return the network with a constant added to the logit of one class.

    Args:
        network: Not changed.
        label: The class.
        amount: The constant: a small one increases the area of the class, a large one gives it all of the image.
    """
    result = copy.deepcopy(network)
    assert isinstance(result.head, SemanticHead)
    bias = result.head.classify.bias
    assert bias is not None
    bias[label] += amount
    return result


def interpolate(first: PyramidSegmenter, second: PyramidSegmenter, share: float) -> PyramidSegmenter:
    """Interpolate two networks: ``first + share · (second − first)``, including batch-norm statistics.

    Args:
        first: Network at ``share = 0``.
        second: Network at ``share = 1``.
        share: Position; above 1 extrapolates.

    Raises:
        ModelError: The two differ in architecture.
    """
    if first.config != second.config:
        raise ModelError(f"Expected two networks of one architecture, got {first.config} and {second.config}.")
    result, other = copy.deepcopy(first), second.state_dict()
    tensors = result.state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensor.add_(share * (other[name] - tensor))
        if name.endswith("running_var"):
            tensor.clamp_(min=_MIN_VARIANCE)
    return result


@torch.no_grad()
def add_weight_noise(network: PyramidSegmenter, amount: float, seed: int) -> PyramidSegmenter:
    """Return the network with normal noise on the weights of every convolution.

    Args:
        network: Not changed.
        amount: Standard deviation of the noise, as a multiple of that of the layer's weights.
        seed: Seed of the noise.
    """
    result, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    for weights in result.parameters():
        if weights.ndim > 1:
            weights.add_(amount * weights.std() * torch.randn(weights.shape, generator=generator))
    return result


def random_network(config: NetworkConfig, seed: int) -> PyramidSegmenter:
    """Return a network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PyramidSegmenter(config).eval()


def with_statistics_of_images(network: PyramidSegmenter, images: Iterable[npt.NDArray[np.uint8]]) -> PyramidSegmenter:
    """Return the network with the batch-norm statistics of other images.

    Args:
        network: Not changed.
        images: The images.

    Shape:
        (H, W, 3) each
    """
    result, device = copy.deepcopy(network), next(network.parameters()).device
    write_statistics(result, measure_statistics(network, (to_batch(image, device) for image in images)))
    return result
