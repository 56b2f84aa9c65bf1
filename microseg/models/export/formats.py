"""Export of a network, with its softmax, to files that other programs run."""

import io
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from microseg.config.params import InferenceSettings
from microseg.errors import ModelError, SettingsError
from microseg.files import atomic_write, disk_full_error, write_text_file
from microseg.models.export.bioimageio import write_bioimageio
from microseg.models.export.post_processing import POST_PROCESSING_FILE, post_processing_code
from microseg.models.network import PyramidSegmenter, SoftmaxNetwork

__all__ = ["FORMATS", "ExportedModel", "export_model"]

_DEFAULTS = InferenceSettings()
_FOLDER = ".export."  # begin of the names of temporary folders
_LONGEST = 24 * 3600  # seconds of an export
_COPIES = 2  # of the weights, in files at one time
_OVERHEAD = 2**20  # bytes of a graph beside its weights
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

    All formats take RGB as floats in 0..1, (B, 3, tile, tile), and compute probabilities, (B, K, tile, tile), and after
    them the maps of the head; the bioimage.io package takes RGB in 0..255 and scales it. Beside the file of a network
    that separates instances, or in its package, is the code that numbers objects, see `post_processing_code`.

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
        NoSpaceError: The disk is full; nothing is left there.
    """
    if kind not in FORMATS:
        raise SettingsError(f"Expected a format out of {', '.join(FORMATS)}, got {kind!r}: choose one of those.")
    if tile < 2 * network.stride or tile % network.stride:
        raise SettingsError(
            f"Expected a tile that is a multiple of the network's stride {network.stride}, got {tile}: round it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{_FOLDER}*"):  # of a killed process
        if time.time() - left.stat().st_mtime > _LONGEST:
            shutil.rmtree(left, ignore_errors=True)
    writers: dict[str, Callable[[nn.Module, Path, npt.NDArray[np.float32]], _Run]] = {
        "bioimageio": _torchscript,
        "onnx": _onnx,
        "torchscript": _torchscript,
        "pt2": _pt2,
    }
    module, example = SoftmaxNetwork(network).eval(), _example_tile(tile)
    two = np.concatenate([example, example[..., ::-1]])  # any batch size
    # PyTorch ends the process where it cannot write, so what surely does not fit is not begun
    needed = _COPIES * sum(tensor.nbytes for tensor in network.state_dict().values()) + _OVERHEAD
    with (
        disk_full_error(path, needed),
        atomic_write(path) as part,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=_FOLDER) as folder,
    ):
        graph = Path(folder) / f"weights{FORMATS['torchscript' if kind == 'bioimageio' else kind]}"
        run = writers[kind](module, graph, example)
        difference = _check_equal(kind, run(two), _probabilities(module, two))
        if kind == "bioimageio":
            graph = write_bioimageio(
                Path(folder),
                network.config,
                graph,
                channels=module.channels,
                example=example,
                expected=_probabilities(module, example),
                halo=halo,
                name=name,
                description=description,
                version=version,
            )
        graph.replace(part)
    if network.config.instances and kind != "bioimageio":  # whose package has it
        write_text_file(path.with_name(f"{path.name}.{POST_PROCESSING_FILE}"), post_processing_code(network.config))
    return ExportedModel(path, kind, version, tile, difference)


def _example_tile(tile: int) -> npt.NDArray[np.float32]:
    """A tile on which graph and network are compared, (1, 3, tile, tile): smooth colors with some noise."""
    y, x = np.mgrid[:tile, :tile].astype(np.float32) / tile
    smooth = np.stack([0.6 + 0.3 * np.sin(9 * x), 0.5 + 0.3 * np.cos(7 * y), 0.6 + 0.3 * np.sin(5 * (x + y))])
    noise = np.random.default_rng(0).normal(0, 0.05, smooth.shape)
    return (smooth + noise).clip(0, 1).astype(np.float32)[None]


def _probabilities(module: nn.Module, tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities of a network or a graph: (B, 3, T, T), in 0..1 → (B, K, T, T)."""
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(np.ascontiguousarray(tiles))).numpy(), np.float32)


def _check_equal(name: str, actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Return the largest difference; raise an error if it is above the tolerance."""
    difference = float(np.abs(actual - expected).max()) if actual.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE:
        raise ModelError(
            f"Expected the {name} graph to compute the network's probabilities to within {_TOLERANCE}, they differ by "
            f"{difference:.2g}: export to another format, or report the encoder as an issue."
        )
    return difference


def _write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Save to memory, then to the file: PyTorch ends the process on a full disk."""
    content = io.BytesIO()
    save(content)
    data = content.getvalue()
    with disk_full_error(path, len(data)):
        path.write_bytes(data)


def _torchscript(module: nn.Module, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is intended
        traced = torch.jit.trace(module, torch.from_numpy(example))  # type: ignore[no-untyped-call]
        _write(path, partial(torch.jit.save, traced))
        return partial(_probabilities, torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


def _pt2(module: nn.Module, path: Path, example: npt.NDArray[np.float32]) -> _Run:
    two = torch.from_numpy(np.concatenate([example, example]))  # a batch size of one would become a constant
    shapes = {"x": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(module, (two,), dynamic_shapes=shapes)
    _write(path, partial(torch.export.save, program))
    with path.open("rb") as file:
        return partial(_probabilities, torch.export.load(file).module())


def _onnx(module: nn.Module, path: Path, example: npt.NDArray[np.float32]) -> _Run:
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
            module,
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
