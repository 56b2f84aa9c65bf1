"""Batch-norm statistics re-estimated on chosen images (AdaBN, Li et al. 2017)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from microseg.errors import TrainingError

__all__ = ["estimate_statistics"]


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the running statistics of every batch normalisation by their mean over batches, in place.

    Args:
        network: any network; its weights stay, and so does its training or evaluation mode.
        batches: (B, 3, H, W) each; give each lab's images in batches of their own, so that each counts for what it is.

    Raises:
        TrainingError: when there is no batch.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    was_training = network.training
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
        layer.train()
    count = 0
    for batch in batches:
        network(batch)
        count += 1
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.train(was_training)
    if layers and not count:
        raise TrainingError("Expected at least one batch to estimate statistics on, got none: give more images.")
