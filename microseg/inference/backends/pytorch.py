"""Inference with public PyTorch only, on any device: folded batch normalization, optionally ``torch.compile``."""

import copy
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from microseg.inference.backends.windowed_pooling import WindowedPooling
from microseg.models.heads import Head
from microseg.models.layers import PyramidPooling
from microseg.models.network import PyramidSegmenter

__all__ = [
    "PyTorchBackend",
    "Tiles",
    "example_input",
    "find_input_layers",
    "fold_batch_norm",
    "half_copy",
    "logits_match",
    "optimized_copy",
    "predict",
    "with_context",
]

Network = TypeVar("Network", bound=nn.Module)
Source = TypeVar("Source", bound=nn.Module)

Tiles = Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8]
"""RGB tiles of one size."""

_TOLERANCE = 1e-4  # of the largest logit
_HALF_TOLERANCE = 0.02  # of a probability

_log = logging.getLogger(__name__)


class PyTorchBackend:
    """Computes on any device, see `Backend`; the arguments are those of `Engine`.

    Weights are stored once in the type that the network computes in. On CUDA the tiles go to the device through pinned
    memory on a stream of their own, and calls return before the device has computed.

    Args:
        network: The network, in evaluation mode and on the device.
        half: Whether it computes in 16 bits, see `half_copy`.
    """

    parallel_tiles = 1

    def __init__(
        self, network: PyramidSegmenter, *, device: torch.device, batch_size: int, half: bool, compiled: bool = False
    ) -> None:
        self.device, self.call_size = device, batch_size
        self._autocast = half and device.type != "cuda"
        self._network = half_copy(network) if half and device.type == "cuda" else network
        self._compiled = torch.compile(self._network, dynamic=False) if compiled else self._network
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def predict(self, tiles: Tiles) -> torch.Tensor:
        """Compute outputs in the calling thread."""
        # each smaller number of tiles at the end of an image would be compiled, too
        network = self._compiled if len(tiles) == self.call_size else self._network
        return predict(network, self._network.head, self._upload(tiles), half=self._autocast)

    def submit(self, tiles: Tiles) -> "Future[torch.Tensor]":
        """See `Backend.submit`."""
        return self._thread.submit(self.predict, tiles)

    def _upload(self, tiles: Tiles) -> torch.Tensor:
        if self._copies is None:
            return torch.from_numpy(np.stack(list(tiles))).to(self.device)
        # PyTorch keeps pinned memory, and gives it out again when the copy from it is done
        pinned = torch.empty((len(tiles), *tiles[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(list(tiles), out=pinned.numpy())
        with torch.cuda.stream(self._copies):
            uploaded = pinned.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copies)
        uploaded.record_stream(current)
        return uploaded


@torch.inference_mode()
def predict(
    network: Callable[[torch.Tensor], torch.Tensor], head: Head, tiles: torch.Tensor, *, half: bool = False
) -> torch.Tensor:
    """Outputs of tiles by a network that is on their device: class probabilities, and the maps of its head.

    Args:
        network: From pixels in 0..1, (B, 3, h, w), to the prediction of its head, (B, P, h, w).
        head: Head of the network, which computes outputs from its prediction.
        tiles: RGB tiles of one size, 0..255, uint8.
        half: Let PyTorch choose which layers compute in bfloat16.

    Shape:
        (B, h, w, 3) → (B, K + M, h, w), float32
    """
    pixels = tiles.permute(0, 3, 1, 2).float().div_(255)  # (B, 3, h, w), channels last
    with torch.autocast(tiles.device.type, dtype=torch.bfloat16, enabled=half):
        prediction = network(pixels)  # (B, P, h, w)
    return head.outputs(prediction.float()).contiguous()


@torch.no_grad()
def half_copy(network: PyramidSegmenter) -> PyramidSegmenter:
    """Copy a network and store its weights in 16 bits; pixels are normalized in 32 bits.

    float16 has eight times the precision of bfloat16, but a smaller range. The first of the two with which the
    probabilities of random pixels stay within 0.02 is used; with none, the network computes in 32 bits.

    Args:
        network: In evaluation mode; it is not changed.
    """
    example = example_input().to(next(network.parameters()).device)
    expected = network.head.outputs(network(example).float())
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(network).to(dtype)
        half.mean, half.std = network.mean, network.std
        half.encoder.register_forward_pre_hook(_Convert(dtype))
        try:
            difference = float((half.head.outputs(half(example).float()) - expected).abs().max())
        except RuntimeError as error:  # a layer of another package
            _log.warning("The network cannot compute in %s: %s", dtype, error)
            continue
        if difference <= _HALF_TOLERANCE:
            return half
        _log.warning("The network's probabilities change by %.2g in %s.", difference, dtype)
    return network


class _Convert:
    """Converts the input of a module."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(each.to(self._dtype) for each in inputs)


def example_input() -> torch.Tensor:
    """Random pixels on which a changed network is compared with the original, (1, 3, h, w)."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def optimized_copy(network: PyramidSegmenter, device: torch.device) -> PyramidSegmenter:
    """Copy a network, fold its batch normalization, and move it to a device."""
    folded = fold_batch_norm(network, example_input().to(next(network.parameters()).device))
    return folded.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def with_context(network: PyramidSegmenter, context: tuple[int, int] | None) -> PyramidSegmenter:
    """Let the pyramid pooling of a network see windows of one size; see `WindowedPooling`.

    Args:
        network: It is changed. One without such a module is local, and is left as it is.
        context: Window and halo in pixels of the image; None to leave the network as it is.
    """
    if context is not None and isinstance(getattr(network, "pyramid", None), PyramidPooling):
        window, halo = (-(-length // network.stride) for length in context)
        network.pyramid = WindowedPooling(network.pyramid, window, halo)  # type: ignore[assignment]
    return network


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
