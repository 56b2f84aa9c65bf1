"""Batch normalization folded into the convolutions before it: the same function in fewer passes over memory."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["find_input_layers", "fold_batch_norm", "logits_match"]

Network = TypeVar("Network", bound=nn.Module)
Giver = TypeVar("Giver", bound=nn.Module)

_TOLERANCE = 1e-4  # of the largest logit


@torch.no_grad()  # inference mode would make its weights inference tensors for good
def fold_batch_norm(network: Network, example: torch.Tensor) -> Network:
    """Copy a network and fold each batch normalization into the convolution whose output it takes.

    Which convolution feeds which normalization is seen by running the network, so bodies of other libraries fold as
    well. The result is compared with the network's own on the example; where they differ, nothing is folded.

    Args:
        network: it is not changed.
        example: (B, 3, H, W), an input to run it on.

    Returns:
        A copy in evaluation mode, folded where that keeps the output.

    Reference:
        Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
        CVPR 2018, section 3.2.
    """
    same = copy.deepcopy(network).eval()
    expected = same(example)
    folded = copy.deepcopy(same)
    pairs = find_input_layers(nn.Conv2d, nn.BatchNorm2d, folded, example)
    for norm, convolution in pairs.items():
        _fold(convolution, norm)
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if child in pairs:
                setattr(parent, name, nn.Sequential(*child.children()))  # what it does besides: timm's activation
    return folded if logits_match(folded(example), expected) else same


def logits_match(given: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether what a changed network gives is what the network itself gives, but for rounding."""
    return bool((given - expected).abs().max() <= _TOLERANCE * max(1.0, float(expected.abs().max())))


@torch.inference_mode(mode=False)  # tensors made in it do not tell that they were changed
@torch.no_grad()
def find_input_layers(
    givers: type[Giver],
    takers: type[nn.Module] | tuple[type[nn.Module], ...],
    network: nn.Module,
    example: torch.Tensor,
) -> dict[nn.Module, Giver]:
    """By running a network: the layers of some kind that take the output of one of another kind, unchanged.

    Args:
        givers: kind of the layers whose output is followed.
        takers: kinds of the layers that are looked for.
        network: what has these layers.
        example: (B, 3, H, W), an input to run it on.

    Returns:
        For each layer found, the one that gives its input.
    """
    made: dict[int, tuple[Giver, torch.Tensor, int]] = {}  # the tensor is kept, so that its id stays its own
    pairs: dict[nn.Module, Giver] = {}

    def remember(module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, givers)
        made[id(output)] = module, output, output._version

    def look_up(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            giver, given, version = made[id(inputs[0])]
            if given._version == version:  # else something was added to it meanwhile
                pairs[module] = giver

    hooks = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, givers)]
    hooks += [m.register_forward_pre_hook(look_up) for m in network.modules() if isinstance(m, takers)]
    network(example)
    for hook in hooks:
        hook.remove()
    return pairs


def _fold(convolution: nn.Conv2d, norm: nn.Module) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
