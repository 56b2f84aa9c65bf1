"""Inference with public PyTorch only, on any device: folded batch normalization, optionally ``torch.compile``."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from microseg.models.heads import Head
from microseg.models.network import PyramidSegmenter

__all__ = [
    "PyTorchBackend",
    "example_input",
    "find_input_layers",
    "fold_batch_norm",
    "logits_match",
    "optimized_copy",
    "predict",
]

Network = TypeVar("Network", bound=nn.Module)
Source = TypeVar("Source", bound=nn.Module)

_TOLERANCE = 1e-4  # of the largest logit


class PyTorchBackend:
    """Computes on any device, see `Backend`; the arguments are those of `Engine`.

    Args:
        network: The network, in evaluation mode and on the device.
    """

    parallel_tiles = 1

    def __init__(
        self, network: PyramidSegmenter, *, device: torch.device, batch_size: int, half: bool, compiled: bool = False
    ) -> None:
        self._network, self._device, self._half, self.call_size = network, device, half, batch_size
        self._compiled = torch.compile(network, dynamic=False) if compiled else network
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def predict(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Compute outputs in the calling thread."""
        # each smaller number of tiles at the end of an image would be compiled, too
        network = self._compiled if len(tiles) == self.call_size else self._network
        return predict(network, self._network.head, tiles, self._device, self._half)

    def submit(self, tiles: npt.NDArray[np.uint8]) -> "Future[npt.NDArray[np.float32]]":
        """See `Backend.submit`."""
        return self._thread.submit(self.predict, tiles)


@torch.inference_mode()
def predict(
    network: Callable[[torch.Tensor], torch.Tensor],
    head: Head,
    tiles: npt.NDArray[np.uint8],
    device: torch.device,
    half: bool,
) -> npt.NDArray[np.float32]:
    """Outputs of tiles by a network that is on the device: class probabilities, and the maps of its head.

    Args:
        network: From pixels in 0..1, (B, 3, h, w), to the prediction of its head, (B, P, h, w).
        head: Head of the network, which computes outputs from its prediction.
        tiles: RGB tiles of one size, 0..255.
        device: Device of the network.
        half: Compute in 16 bits: float16 on CUDA, bfloat16 elsewhere.

    Shape:
        (B, h, w, 3) → (B, K + M, h, w)
    """
    values = torch.from_numpy(tiles)
    values = values.pin_memory() if device.type == "cuda" else values
    pixels = values.to(device, non_blocking=True).permute(0, 3, 1, 2)  # (B, 3, h, w) uint8, channels last
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    with torch.autocast(device.type, dtype=dtype, enabled=half):
        prediction = network(pixels.float().div_(255))  # (B, P, h, w)
    return np.asarray(head.outputs(prediction.float()).contiguous().cpu().numpy(), np.float32)


def example_input() -> torch.Tensor:
    """Random pixels on which a changed network is compared with the original, (1, 3, h, w)."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def optimized_copy(network: PyramidSegmenter, device: torch.device) -> PyramidSegmenter:
    """Copy a network, fold its batch normalization, and move it to a device."""
    folded = fold_batch_norm(network, example_input().to(next(network.parameters()).device))
    return folded.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@torch.no_grad()  # inference mode would make its weights inference tensors permanently
def fold_batch_norm(network: Network, example: torch.Tensor) -> Network:
    """Copy a network and fold each batch normalization into the convolution before it.

    Which convolution precedes which normalization is observed by running the network, so encoders of other libraries
    are folded as well. If the output on the example changes, nothing is folded.

    Args:
        network: It is not changed.
        example: An input.

    Shape:
        example (B, 3, H, W)

    Returns:
        A copy in evaluation mode.

    Reference:
        Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
        CVPR 2018, section 3.2.
    """
    plain = copy.deepcopy(network).eval()
    expected = plain(example)
    folded = copy.deepcopy(plain)
    pairs = find_input_layers(nn.Conv2d, nn.BatchNorm2d, folded, example)
    for norm, convolution in pairs.items():
        _fold(convolution, norm)
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if child in pairs:
                setattr(parent, name, nn.Sequential(*child.children()))  # timm's normalization has an activation
    return folded if logits_match(folded(example), expected) else plain


def logits_match(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the logits of a changed network equal those of the original, up to rounding."""
    return bool((actual - expected).abs().max() <= _TOLERANCE * max(1.0, float(expected.abs().max())))


@torch.inference_mode(mode=False)  # tensors made in it have no version
@torch.no_grad()
def find_input_layers(
    sources: type[Source],
    targets: type[nn.Module] | tuple[type[nn.Module], ...],
    network: nn.Module,
    example: torch.Tensor,
) -> dict[nn.Module, Source]:
    """Run a network, and find layers whose input is the unchanged output of a layer of another kind.

    Args:
        sources: Kind of the layers whose output is followed.
        targets: Kinds of the layers to find.
        network: The network.
        example: An input.

    Shape:
        example (B, 3, H, W)

    Returns:
        The source layer of each target layer found.
    """
    # by id of the tensor, which is held so that its id is not reused
    outputs: dict[int, tuple[Source, torch.Tensor, int]] = {}
    pairs: dict[nn.Module, Source] = {}

    def remember(module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, sources)
        outputs[id(output)] = module, output, output._version

    def look_up(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            source, output, version = outputs[id(inputs[0])]
            if output._version == version:  # otherwise it was changed in place
                pairs[module] = source

    hooks = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, sources)]
    hooks += [m.register_forward_pre_hook(look_up) for m in network.modules() if isinstance(m, targets)]
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
