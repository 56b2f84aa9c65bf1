"""Convolutions joined with what stands around them: fewer passes over memory for the same function.

On CPUs PyTorch computes a convolution, then its activation in a pass of its own; with one thread it computes 1 x 1
convolutions without oneDNN; and padding as TensorFlow does it is a copy of the whole map. All three are spared here.
"""

import copy
import functools
import warnings
from collections.abc import Callable

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from microseg.inference.backends.batch_norm_folding import find_input_layers, logits_match

__all__ = ["fuse_convolutions"]

warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)  # without it, nothing is fused

_NOTHING = ("none", 0.0, 0.0)


@torch.no_grad()
def fuse_convolutions(network: nn.Module, example: Tensor) -> nn.Module:
    """Copy a network that computes on a CPU, and let oneDNN compute each convolution with the activation after it.

    The result is compared with the network's own on the example; where they differ, or this PyTorch cannot do it,
    nothing is fused.

    Args:
        network: in evaluation mode, on the CPU, in 32 bits; it is not changed. Its weights must not change any more.
        example: (B, 3, H, W), an input to run it on.

    Returns:
        A copy, fused where that keeps the output; else the network.
    """
    fused = copy.deepcopy(network)
    activations = find_input_layers(nn.Conv2d, (nn.ReLU, nn.Hardtanh), fused, example)  # ReLU6 is a Hardtanh
    after = {convolution: activation for activation, convolution in activations.items()}
    try:
        for parent in list(fused.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d) and _fits(child):
                    setattr(parent, name, _FusedConv2d(child, after.get(child)))
                elif child in activations and _fits(activations[child]):
                    setattr(parent, name, nn.Identity())
        return fused if logits_match(fused(example), network(example)) else network
    except (RuntimeError, AttributeError, OSError):  # the last: where the program's source is not at hand
        return network


class _FusedConv2d(nn.Module):
    """A convolution and its activation as one operator.

    Padding as TensorFlow's, of a map of even size to half of it, is one pixel more below and to the right than above
    and to the left. Here it is the same on all sides, of a kernel with one more row and column of zeros.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.plain = nn.Sequential(convolution, *([] if activation is None else [activation]))
        self.halves = isinstance(convolution, Conv2dSame)
        weight, padding = convolution.weight, [int(one) for one in convolution.padding]
        if self.halves:
            weight = functional.pad(weight, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
            padding = [(side - 1) // 2 for side in convolution.kernel_size]
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.padding, self.stride = padding, list(convolution.stride)
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        self.then = _kind(activation)

    def forward(self, x: Tensor) -> Tensor:
        """As the two one after the other."""
        if self.halves and (x.shape[-2] % 2 or x.shape[-1] % 2):
            plain: Tensor = self.plain(x)
            return plain
        settings = (self.padding, self.stride, self.dilation, self.groups, *self.then)
        return _operator()(x, self.weight, self.plain[0].bias, *settings)


def _fits(convolution: nn.Conv2d) -> bool:
    if isinstance(convolution, Conv2dSame):
        odd = all(side % 2 and side > 1 for side in convolution.kernel_size)
        return odd and convolution.stride == (2, 2) and convolution.dilation == (1, 1)
    usual = type(convolution) is nn.Conv2d and convolution.padding_mode == "zeros"
    return usual and not isinstance(convolution.padding, str)


def _kind(activation: nn.Module | None) -> tuple[str, float, float]:
    """Name of an activation to oneDNN, and its bounds."""
    if isinstance(activation, nn.Hardtanh):
        return "hardtanh", float(activation.min_val), float(activation.max_val)
    return _NOTHING if activation is None else ("relu", 0.0, 0.0)


@functools.cache
def _operator() -> Callable[..., Tensor]:
    """The operator, in the form that graphs can be made with.

    Raises:
        RuntimeError: this PyTorch has none.
    """
    joined: Callable[..., Tensor] = torch.jit.script(_convolve)
    return joined


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    then: str,
    lowest: float,
    highest: float,
) -> Tensor:
    # TorchScript takes a list of bounds only as a tuple written here
    if then == "hardtanh":
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, weight, bias, padding, stride, dilation, groups, then, (lowest, highest), ""
        )
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, weight, bias, padding, stride, dilation, groups, then, (), ""
    )
