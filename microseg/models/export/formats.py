"""Export of a network, with its softmax, to files that other programs run."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from microseg.config.params import InferenceSettings
from microseg.errors import ModelError, SettingsError
from microseg.files import atomic_write
from microseg.models.export.bioimageio import write_bioimageio
from microseg.models.network import PyramidSegmenter, SoftmaxNetwork

__all__ = ["FORMATS", "ExportedModel", "export_model"]

_DEFAULTS = InferenceSettings()
_TOLERANCE = 1e-4  # of probabilities: a graph may sum in another order

FORMATS: Mapping[str, str] = {
    "bioimageio": ".bioimageio.zip",
    "onnx": ".onnx",
    "torchscript": ".torchscript.pt",
    "pt2": ".pt2",
}
"""Suffix of the files of each format."""

_Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ExportedModel:
    """An exported model.

    Attributes:
        path: Path of the file.
        format: One of ``FORMATS``.
        version: Version of the model; None if unknown.
        tile: Side of the tiles that the file takes, in pixels.
        difference: Largest difference between its probabilities and those of the network, on an example.
    """

    path: Path
    format: str
    version: str | None
    tile: int
    difference: float


def export_model(
    network: PyramidSegmenter,
    path: Path,
    *,
    kind: str,
    tile: int = _DEFAULTS.tile_size,
    halo: int = _DEFAULTS.halo,
    name: str = "microseg",
    description: str = "",
    version: str | None = None,
) -> ExportedModel:
    """Export a network, and compare the file's probabilities with those of the network.

    All formats take RGB as floats in 0..1, (B, 3, tile, tile), and compute probabilities, (B, K, tile, tile); the
    bioimage.io package takes RGB in 0..255 and scales it.

    Args:
        network: The segmenter, on the CPU.
        path: File to write; its folder is created if missing.
        kind: One of ``FORMATS``.
        tile: Side of the tiles in pixels; a multiple of the network's stride.
        halo: Border of a tile whose result should be discarded, in pixels; for the bioimage.io package.
        name: Name of the model, for the package.
        description: Description in Markdown, for the package.
        version: Version of the model, for the package.

    Returns:
        The file, and the difference between its probabilities and the network's on an example.

    Raises:
        SettingsError: The format is unknown, or the tile is not a multiple of the stride.
        ModelError: A package that the format needs is missing, or the file computes other probabilities.
    """
    if kind not in FORMATS:
        raise SettingsError(f"Expected a format out of {', '.join(FORMATS)}, got {kind!r}: choose one of those.")
    if tile < 2 * network.stride or tile % network.stride:
        raise SettingsError(
            f"Expected a tile that is a multiple of the network's stride {network.stride}, got {tile}: round it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    network = network.eval()
    example = _example_tile(tile)
    expected = _probabilities(network, example)
    if kind == "bioimageio":
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export.") as folder:
            weights = Path(folder) / "weights.torchscript.pt"
            difference = _check_equal("torchscript", _torchscript(network, weights, example)(example), expected)
            made = write_bioimageio(
                Path(folder),
                network.config,
                weights,
                example=example,
                expected=expected,
                halo=halo,
                name=name,
                description=description,
                version=version,
            )
            shutil.move(made, path)
        return ExportedModel(path, kind, version, tile, difference)
    writers: dict[str, Callable[[PyramidSegmenter, Path, npt.NDArray[np.float32]], _Run]] = {
        "onnx": _onnx,
        "torchscript": _torchscript,
        "pt2": _pt2,
    }
    with atomic_write(path) as part:
        run = writers[kind](network, part, example)
        two = np.concatenate([example, example[..., ::-1]])  # any batch size
        difference = _check_equal(kind, run(two), _probabilities(network, two))
    return ExportedModel(path, kind, version, tile, difference)


def _example_tile(tile: int) -> npt.NDArray[np.float32]:
    """A tile on which graph and network are compared: smooth colors with some noise, the same each time.

    Shape:
        (1, 3, tile, tile), in 0..1
    """
    y, x = np.mgrid[:tile, :tile].astype(np.float32) / tile
    smooth = np.stack([0.6 + 0.3 * np.sin(9 * x), 0.5 + 0.3 * np.cos(7 * y), 0.6 + 0.3 * np.sin(5 * (x + y))])
    noise = np.random.default_rng(0).normal(0, 0.05, smooth.shape)
    return (smooth + noise).clip(0, 1).astype(np.float32)[None]


def _probabilities(network: PyramidSegmenter, tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities of the network.

    Shape:
        (B, 3, T, T), in 0..1 → (B, K, T, T)
    """
    with torch.inference_mode():
        return np.asarray(network.eval()(torch.from_numpy(tiles)).softmax(dim=1).numpy(), np.float32)


def _check_equal(name: str, actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Return the largest difference.

    Raises:
        ModelError: It is above the tolerance.
    """
    difference = float(np.abs(actual - expected).max()) if actual.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE:
        raise ModelError(
            f"Expected the {name} graph to compute the network's probabilities to within {_TOLERANCE}, they differ by "
            f"{difference:.2g}: export to another format, or report the encoder as an issue."
        )
    return difference


def _torchscript(network: PyramidSegmenter, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is intended
        traced = torch.jit.trace(SoftmaxNetwork(network).eval(), torch.from_numpy(example))  # type: ignore[no-untyped-call]
        traced.save(str(path))
        return _run_module(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


def _pt2(network: PyramidSegmenter, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    two = torch.from_numpy(np.concatenate([example, example]))  # a batch size of one would become a constant
    shapes = {"x": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(SoftmaxNetwork(network).eval(), (two,), dynamic_shapes=shapes)
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        return _run_module(torch.export.load(file).module())


def _onnx(network: PyramidSegmenter, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    except ImportError as error:
        raise ModelError(
            f"Expected the packages for ONNX, {error.name} is not installed: pip install 'microseg[onnx]'."
        ) from error
    two = torch.from_numpy(np.concatenate([example, example]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            SoftmaxNetwork(network).eval(),
            (two,),
            dynamo=True,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda tiles: np.asarray(session.run(None, {"image": np.ascontiguousarray(tiles)})[0], np.float32)


def _run_module(module: nn.Module) -> _Run:
    def run(tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(tiles))).numpy(), np.float32)

    return run
