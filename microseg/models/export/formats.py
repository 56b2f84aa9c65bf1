"""Exports of a network to files that other programs run."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from microseg.config.params import InferenceSettings
from microseg.errors import ModelError, SettingsError
from microseg.files import atomic_write
from microseg.models.export.bioimageio import write_bioimageio
from microseg.models.export.graph import Exported, SoftmaxNetwork, check_same, example_tile, tile_probabilities
from microseg.models.network import PyramidSegmenter

__all__ = ["FORMATS", "export_model"]

_DEFAULTS = InferenceSettings()

FORMATS: Mapping[str, str] = {
    "bioimageio": ".bioimageio.zip",
    "onnx": ".onnx",
    "torchscript": ".torchscript.pt",
    "pt2": ".pt2",
}
"""Each format, and how its files' names end."""

_Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


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
) -> Exported:
    """Export a network, and compare what was written with the network itself.

    All formats take (B, 3, tile, tile), RGB as floats in 0..1, and give (B, K, tile, tile), probabilities; the
    bioimage.io package takes RGB in 0..255 and scales it itself.

    Args:
        network: on the CPU.
        path: of the file, written whole or not at all; its folder is made where missing.
        kind: one of ``FORMATS``.
        tile: side of the tiles, in pixels; a multiple of the network's stride.
        halo: border of a tile whose result is best thrown away, in pixels; for the package.
        name: of the model, for the package.
        description: Markdown, for the package.
        version: of the model, for the package.

    Returns:
        The file, and how far its answer is from the network's on an example.

    Raises:
        SettingsError: the format is unknown, or the tile does not fit.
        ModelError: a package that the format needs is missing, or the graph's answer is not the network's.
    """
    if kind not in FORMATS:
        raise SettingsError(f"Expected a format out of {', '.join(FORMATS)}, got {kind!r}: choose one of those.")
    if tile < 2 * network.stride or tile % network.stride:
        raise SettingsError(
            f"Expected a tile that is a multiple of the network's stride {network.stride}, got {tile}: round it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    network = network.eval()
    example = example_tile(tile)
    expected = tile_probabilities(network, example)
    if kind == "bioimageio":
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export.") as folder:
            weights = Path(folder) / "weights.torchscript.pt"
            difference = check_same("torchscript", _torchscript(network, weights, example)(example), expected)
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
        return Exported(path, kind, tile, difference)
    writers: dict[str, Callable[[PyramidSegmenter, Path, npt.NDArray[np.float32]], _Run]] = {
        "onnx": _onnx,
        "torchscript": _torchscript,
        "pt2": _pt2,
    }
    with atomic_write(path) as part:
        run = writers[kind](network, part, example)
        two = np.concatenate([example, example[..., ::-1]])  # the batch is free
        difference = check_same(kind, run(two), tile_probabilities(network, two))
    return Exported(path, kind, tile, difference)


def _torchscript(network: PyramidSegmenter, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of traces: sizes become constants, which is what is meant here
        traced = torch.jit.trace(SoftmaxNetwork(network).eval(), torch.from_numpy(example))  # type: ignore[no-untyped-call]
        traced.save(str(path))
        return _calling(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


def _pt2(network: PyramidSegmenter, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    two = torch.from_numpy(np.concatenate([example, example]))  # of a batch of one, export makes a constant
    shapes = {"x": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(SoftmaxNetwork(network).eval(), (two,), dynamic_shapes=shapes)
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        return _calling(torch.export.load(file).module())


def _onnx(network: PyramidSegmenter, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    except ImportError as error:
        raise ModelError(
            f"expected the packages for ONNX, {error.name} is not installed; pip install 'microseg[onnx]'"
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


def _calling(module: nn.Module) -> _Run:
    def run(tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(tiles))).numpy(), np.float32)

    return run
