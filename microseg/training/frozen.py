"""Batch normalisation with fixed statistics in a training: computed by the convolutions, while all weights learn."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from microseg.model.folding import inputs_from, same_logits

__all__ = ["FrozenNorms"]


class FrozenNorms:
    """A network's batch normalisations, of fixed statistics, each as part of the convolution before it.

    With fixed μ and σ, γ (w ∗ x − μ) / σ + β is one convolution, by γ w / σ, and a bias. Its gradients with respect to
    w, γ and β are those of the two layers, and neither forward nor backward pass has to go over the maps once more.

    Where the result is not the network's own, seen on noise, nothing is changed.

    Args:
        network: it stays as it is; between `folded` and its end it computes by fewer layers.
    """

    def __init__(self, network: nn.Module) -> None:
        parameter, training = next(network.parameters()), network.training
        example = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(parameter)  # (1, 3, h, w)
        network.eval()
        pairs = inputs_from(nn.Conv2d, nn.BatchNorm2d, network, example)
        with torch.no_grad():
            expected = network(example)
            self._pairs = {norm: it for norm, it in pairs.items() if isinstance(norm, nn.BatchNorm2d) and norm.affine}
            with self.folded():
                same = same_logits(network(example), expected)
        if not same:
            self._pairs = {}
        network.train(training)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._pairs)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """For forward passes; backward passes may come later."""
        own = {it: (it.weight, it.bias) for it in self._pairs.values()}
        try:
            for norm, convolution in self._pairs.items():
                _put(convolution, *_joined(convolution, norm))
                norm.__dict__["forward"] = nn.Sequential(*norm.children())  # what it does besides: timm's activation
            yield
        finally:
            for norm, convolution in self._pairs.items():
                _put(convolution, *own[convolution])
                norm.__dict__.pop("forward", None)


def _put(convolution: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Let it compute with these, which need not be parameters, as `torch.func.functional_call` does."""
    given: dict[str, Any] = {"weight": weight, "bias": bias}
    convolution._parameters.update(given)


def _joined(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight, (out, in / groups, h, w), and bias, (out), of a convolution that normalises."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (out,)
    mean = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale
