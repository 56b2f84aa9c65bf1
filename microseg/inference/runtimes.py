"""What computes a network's tiles besides PyTorch: OpenVINO, which on processors takes less time for the same."""

import threading
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from microseg.errors import ModelError, SettingsError

__all__ = ["RUNTIMES", "TOLERANCE", "OpenVinoTiles", "check_runtime"]

RUNTIMES = ("torch", "openvino")
"""What can compute: `Engine`'s ``runtime``."""

TOLERANCE = 1e-4
"""How far probabilities by another runtime may be from PyTorch's: sums in another order, nothing else."""

_SIZES = 4  # of tiles, for which a compiled network is kept


class OpenVinoTiles:
    """A network as OpenVINO computes it on the CPU, in 32 bits, for tiles of any size.

    It is converted once, which takes seconds. For each size of tiles it is compiled when the first of them comes,
    which takes about as long as a tile or two; of the sizes the last four are kept. It may be called from several
    threads at once.

    Args:
        network: in evaluation mode, on the CPU; it gives logits.
        stride: of the network; the sides of tiles are multiples of it.
        lanes: calls that are computed beside one another.
        threads: that they share.

    Raises:
        SettingsError: OpenVINO is not installed.
        ModelError: its probabilities are further from the network's than `TOLERANCE` on an example.
    """

    def __init__(self, network: nn.Module, *, stride: int, lanes: int, threads: int) -> None:
        try:
            import openvino
            from openvino.frontend import FrontEndManager
            from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
        except ImportError as error:
            raise SettingsError(
                "Expected OpenVINO for inference.runtime openvino, it is not installed: pip install "
                "'microseg[openvino]', or set inference.runtime to torch."
            ) from error
        self._core = openvino.Core()
        self._options = {
            "INFERENCE_PRECISION_HINT": "f32",  # else in 16 bits where the processor knows them
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # several processes would all take the same cores
        }
        self._compiled: dict[tuple[int, ...], Any] = {}  # by the tiles' shape, the one used last at the end
        self._compiling = threading.Lock()
        pixels = _FromPixels(network).eval()
        traced, other = (_noise(2 * stride, 3 * stride), _noise(3 * stride, 2 * stride))  # other: the size is free
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of traces: that sides are multiples of the stride becomes a constant
            # what openvino.convert_model does, which besides reports to its makers over the network
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(pixels, example_input=torch.from_numpy(traced))
            self._model = frontend.convert(frontend.load(decoder))
            expected = pixels(torch.from_numpy(other)).numpy()  # (1, K, h, w)
        difference = float(np.abs(self(other) - expected).max())
        self._compiled.clear()
        if not difference <= TOLERANCE:
            raise ModelError(
                f"Expected OpenVINO to give PyTorch's probabilities to within {TOLERANCE}, they differ by "
                f"{difference:.2g}: set inference.runtime to torch, or report the encoder with which this happens."
            )

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Class probabilities of a batch of tiles.

        Shape:
            (B, h, w, 3) → (B, K, h, w)
        """
        request = self._for(tiles.shape).create_infer_request()  # one of its own, as threads may not share it
        return np.asarray(request.infer({0: tiles})[0], np.float32)

    def _for(self, shape: tuple[int, ...]) -> Any:
        with self._compiling:
            compiled = self._compiled.pop(shape, None)
            if compiled is None:
                sized = self._model.clone()
                sized.reshape(shape)
                compiled = self._core.compile_model(sized, "CPU", self._options)
            self._compiled[shape] = compiled
            if len(self._compiled) > _SIZES:
                del self._compiled[next(iter(self._compiled))]
            return compiled


def check_runtime(runtime: str, *, device: str, half: bool, compiled: bool) -> None:
    """Refuse what does not go together, before anything is made.

    Args:
        runtime: what computes.
        device: where: ``cpu``, ``cuda`` or ``mps``.
        half: in 16 bits.
        compiled: with a network that PyTorch has compiled.

    Raises:
        SettingsError: they do not.
    """
    if runtime not in RUNTIMES:
        raise SettingsError(f"Expected a runtime out of {', '.join(RUNTIMES)}, got {runtime!r}: choose one of those.")
    if runtime == "openvino" and device != "cpu":
        raise SettingsError(
            f"Expected device cpu for inference.runtime openvino, got {device}: set device to cpu, or "
            "inference.runtime to torch."
        )
    if runtime == "openvino" and half:
        raise SettingsError("Expected 32 bits for runtime openvino, got half: leave it out, or choose runtime torch.")
    if compiled and device != "cuda":
        raise SettingsError(
            f"Expected device cuda for inference.compile, got {device}: set inference.compile to false, or device to "
            "cuda."
        )


class _FromPixels(nn.Module):
    """A network from pixels, (B, h, w, 3) in 0..255, to probabilities, (B, K, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(tiles.permute(0, 3, 1, 2).float() / 255)  # (B, K, h, w)
        return logits.softmax(dim=1)


def _noise(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
