"""Graphs of a network: without Python between its layers, threads that compute beside one another do not wait."""

import threading
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from microseg.cpu import return_memory
from microseg.inference.backends.batch_norm_folding import logits_match

__all__ = ["TracedNetwork"]

_OFTEN = 32  # tiles of one size, from where on making a graph of them pays
_SIZES = 8

# that sizes become constants, which is what is meant; and that PyTorch may give graphs up, the network is there then
warnings.filterwarnings("ignore", category=TracerWarning)
warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)


class TracedNetwork:
    """A network on a CPU, of which a graph is made for each size of input that is met often.

    Python's lock is taken at every layer of a network, and held for milliseconds by whoever writes outlines at the same
    time. A graph takes it once. Sizes met rarely, and those after the eighth, are computed by the network itself, as
    are those whose graph gives something else.

    Args:
        network: in evaluation mode, on the CPU; its weights must not change any more.

    Shape:
        (B, 3, h, w) → (B, K, h, w)
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._met: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, Callable[[Tensor], Tensor]] = {}
        self._counting = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits."""
        graph = self._graphs.get(x.shape)
        if graph is not None:
            return graph(x)
        with self._counting:
            self._met[x.shape] += 1
            due = self._met[x.shape] == _OFTEN and len(self._graphs) < _SIZES
        if due:
            self._graphs[x.shape] = _graph(self._network, x.shape)
        logits: Tensor = self._network(x)
        return logits


@torch.inference_mode(mode=False)  # a graph made in it could be used in it alone
@torch.no_grad()
def _graph(network: nn.Module, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The graph for inputs of a shape; the network, where it cannot be traced or gives something else."""
    return_memory()  # making a graph takes more than computing does
    example = torch.rand(shape).to(memory_format=torch.channels_last)
    try:
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        graph = torch.jit.freeze(traced)
        same = logits_match(graph(example), network(example))
    except (RuntimeError, AttributeError):
        return network
    finally:
        return_memory()
    return graph if same else network
