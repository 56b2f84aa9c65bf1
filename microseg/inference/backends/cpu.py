"""Inference on CPUs: fused convolutions, TorchScript graphs, and tiles computed in parallel.

PyTorch computes a convolution, then its activation in a separate pass; with one thread it computes 1 x 1 convolutions
without oneDNN; and padding as in TensorFlow copies the whole feature map. Fused convolutions avoid all three.

Threads that share one tile wait for each other at every layer. Here each tile is computed by its share of the threads.
Python's lock is taken at every layer of a network, and held for milliseconds by whatever writes outlines at the same
time; a graph takes it once.

This file relies on TorchScript and on the private operator ``mkldnn._convolution_pointwise``. Where these are missing,
nothing is fused or traced, and results are the same.
"""

import copy
import functools
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.cpu import return_memory
from microseg.inference.backends.pytorch import (
    Tiles,
    example_input,
    find_input_layers,
    logits_match,
    optimized_copy,
    predict,
    with_context,
)
from microseg.models.network import PyramidSegmenter

__all__ = ["CpuBackend", "TileExecutor", "TracedNetwork", "fuse_convolutions"]

P = ParamSpec("P")
T = TypeVar("T")

_NO_ACTIVATION = ("none", 0.0, 0.0)
_TRACE_AFTER = 32  # tiles of one size after which tracing saves time
_MAX_GRAPHS = 8

warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]  # sizes are constants
warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)  # deprecated; see above


class CpuBackend:
    """Computes one tile per call, several calls in parallel; see `Backend`.

    Args:
        network: The segmenter; it is copied, not changed.
        batch_size: Tiles computed at once; at most as many as PyTorch has threads.
        half: Compute in bfloat16; convolutions are then not fused.
        context: See `create_backend`.
    """

    call_size = 1

    def __init__(
        self, network: PyramidSegmenter, *, batch_size: int, half: bool, context: tuple[int, int] | None = None
    ) -> None:
        self.device = torch.device("cpu")
        self._half = half
        self._executor = TileExecutor(batch_size)
        self.parallel_tiles = self._executor.count
        folded = with_context(optimized_copy(network, self.device), context)
        self._head = folded.head
        self._network = folded if half else TracedNetwork(fuse_convolutions(folded, example_input()))
        return_memory()  # of the copies

    def predict(self, tiles: Tiles) -> Tensor:
        """Compute outputs in the calling thread."""
        return predict(self._network, self._head, torch.from_numpy(np.stack(list(tiles))), half=self._half)

    def submit(self, tiles: Tiles) -> "Future[Tensor]":
        """See `Backend.submit`."""
        return self._executor.submit(self.predict, tiles)


class TileExecutor:
    """Runs calls in parallel threads, each of which computes with its share of PyTorch's threads.

    The threads start with the first call.

    Args:
        most: Largest number of calls at the same time; never more than PyTorch has threads.

    Attributes:
        count: Number of calls at the same time.
    """

    def __init__(self, most: int) -> None:
        threads = torch.get_num_threads()
        self.count = max(1, min(most, threads))
        self._threads = threads // self.count
        self._pool: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run a call in the next free thread."""
        with self._starting:
            if self._pool is None:
                self._pool = self._start()
        return self._pool.submit(call, *args, **kwargs)

    def _start(self) -> ThreadPoolExecutor:
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.count, thread_name_prefix="inference")
        together = threading.Barrier(self.count)

        def start() -> None:
            torch.get_num_threads()  # a thread adopts the global number at its first call
            torch.set_num_threads(self._threads)  # for this thread; but also for threads that start later
            together.wait()

        for started in [pool.submit(start) for _ in range(self.count)]:
            started.result()
        torch.set_num_threads(threads)
        return pool


class TracedNetwork:
    """A network that is traced for each input size that is frequent.

    Rare sizes, and those after the eighth, are computed by the network itself, as are those whose graph gives other
    results.

    Args:
        network: In evaluation mode, on the CPU; its weights must not change any more.

    Shape:
        (B, 3, h, w) → (B, K, h, w)
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._calls: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, Callable[[Tensor], Tensor]] = {}
        self._counting = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits."""
        graph = self._graphs.get(x.shape)
        if graph is not None:
            return graph(x)
        with self._counting:
            self._calls[x.shape] += 1
            due = self._calls[x.shape] == _TRACE_AFTER and len(self._graphs) < _MAX_GRAPHS
        if due:
            self._graphs[x.shape] = _trace(self._network, x.shape)
        logits: Tensor = self._network(x)
        return logits


@torch.inference_mode(mode=False)  # a graph made in it could be used in it only
@torch.no_grad()
def _trace(network: nn.Module, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The graph for inputs of a shape; the network, if it cannot be traced or the graph gives other results."""
    return_memory()  # tracing takes more than computing
    example = torch.rand(shape).to(memory_format=torch.channels_last)
    try:
        graph = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))  # type: ignore[no-untyped-call]
        same = logits_match(graph(example), network(example))
    except (RuntimeError, AttributeError):
        return network
    finally:
        return_memory()
    return graph if same else network


@torch.no_grad()
def fuse_convolutions(network: nn.Module, example: Tensor) -> nn.Module:
    """Copy a network, and replace each convolution and the activation after it by one oneDNN operator.

    If the output on the example changes, or this PyTorch does not have the operator, nothing is fused.

    Args:
        network: In evaluation mode, on the CPU, in 32 bits; it is not changed. Its weights must not change any more.
        example: An input.

    Shape:
        example (B, 3, H, W)

    Returns:
        A fused copy, or the network.
    """
    fused = copy.deepcopy(network)
    activations = find_input_layers(nn.Conv2d, (nn.ReLU, nn.Hardtanh), fused, example)  # ReLU6 is a Hardtanh
    after = {convolution: activation for activation, convolution in activations.items()}
    try:
        for parent in list(fused.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d) and _can_fuse(child):
                    setattr(parent, name, _FusedConv2d(child, after.get(child)))
                elif child in activations and _can_fuse(activations[child]):
                    setattr(parent, name, nn.Identity())
        return fused if logits_match(fused(example), network(example)) else network
    except (RuntimeError, AttributeError, OSError):  # OSError: TorchScript needs the source of this file
        return network


class _FusedConv2d(nn.Module):
    """A convolution and its activation as one operator.

    TensorFlow's padding of a map of even size to half of it adds one pixel more below and to the right than above and
    to the left. Here it is the same on all sides, of a kernel with one more row and column of zeros.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.plain = nn.Sequential(convolution, *([] if activation is None else [activation]))
        self.halves = _is_conv2d_same(convolution)
        weight, padding = convolution.weight, [int(one) for one in convolution.padding]
        if self.halves:
            weight = functional.pad(weight, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
            padding = [(side - 1) // 2 for side in convolution.kernel_size]
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.padding, self.stride = padding, list(convolution.stride)
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        self.activation = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the activation."""
        if self.halves and (x.shape[-2] % 2 or x.shape[-1] % 2):
            plain: Tensor = self.plain(x)
            return plain
        settings = (self.padding, self.stride, self.dilation, self.groups, *self.activation)
        return _operator()(x, self.weight, self.plain[0].bias, *settings)


def _can_fuse(convolution: nn.Conv2d) -> bool:
    if _is_conv2d_same(convolution):
        odd = all(side % 2 and side > 1 for side in convolution.kernel_size)
        return odd and convolution.stride == (2, 2) and convolution.dilation == (1, 1)
    usual = type(convolution) is nn.Conv2d and convolution.padding_mode == "zeros"
    return usual and not isinstance(convolution.padding, str)


def _is_conv2d_same(convolution: nn.Conv2d) -> bool:
    """Whether it pads as TensorFlow does. Whoever built such a layer has imported timm, which takes seconds."""
    module = sys.modules.get("timm.layers.conv2d_same")
    return module is not None and isinstance(convolution, module.Conv2dSame)


def _activation(activation: nn.Module | None) -> tuple[str, float, float]:
    """OneDNN's name of an activation, and its bounds."""
    if isinstance(activation, nn.Hardtanh):
        return "hardtanh", float(activation.min_val), float(activation.max_val)
    return _NO_ACTIVATION if activation is None else ("relu", 0.0, 0.0)


@functools.cache
def _operator() -> Callable[..., Tensor]:
    """The operator as a TorchScript function, which can be traced.

    Raises:
        RuntimeError: This PyTorch does not have it.
    """
    scripted: Callable[..., Tensor] = torch.jit.script(_convolve)
    return scripted


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    lowest: float,
    highest: float,
) -> Tensor:
    # TorchScript accepts a list of bounds only as a literal tuple
    if activation == "hardtanh":
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, weight, bias, padding, stride, dilation, groups, activation, (lowest, highest), ""
        )
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, weight, bias, padding, stride, dilation, groups, activation, (), ""
    )
