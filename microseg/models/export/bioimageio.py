"""A package of the bioimage.io model zoo, for Fiji (DeepImageJ), Icy, ilastik, QuPath and others."""

import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from microseg.files import file_sha256
from microseg.models.config import NetworkConfig
from microseg.models.export.post_processing import POST_PROCESSING_FILE, post_processing_code

__all__ = ["write_bioimageio"]

_FORMAT = "0.5.4"
_PAPER = "https://arxiv.org/abs/1909.11524"
_DISCLAIMER = "Made with microseg. Validate it on images of your lab before you use its results.\n"


def write_bioimageio(
    folder: Path,
    config: NetworkConfig,
    weights: Path,
    *,
    channels: Sequence[str],
    example: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    halo: int,
    name: str,
    description: str,
    version: str | None,
) -> Path:
    """Write the package: description, weights, and an input with its output.

    ``weights`` is the TorchScript file, in the same folder; ``expected`` are the network's outputs for ``example``, an
    input in 0..1, and ``channels`` their names. The other arguments are those of `export_model`. Of a network that
    separates instances the package has the code for that, see `post_processing_code`.

    Shape:
        example (1, 3, T, T), expected (1, K + M, T, T)

    Returns:
        The package, a zip file in the folder.

    Reference:
        Model description specification 0.5, https://github.com/bioimage-io/spec-bioimage-io
    """
    np.save(folder / "test_input.npy", example * np.float32(255))
    np.save(folder / "test_output.npy", expected)
    (folder / "README.md").write_text(f"# {name}\n\n{description or _DISCLAIMER}\n", encoding="utf-8")
    files = ["rdf.yaml", "README.md", "test_input.npy", "test_output.npy", weights.name]
    if config.instances:
        files.append(POST_PROCESSING_FILE)
        (folder / POST_PROCESSING_FILE).write_text(post_processing_code(config), encoding="utf-8")
        with (folder / "README.md").open("a", encoding="utf-8") as readme:
            readme.write(f"\nTouching objects are separated by `number_objects` in `{POST_PROCESSING_FILE}`.\n")
    described = _describe(folder, config, channels, weights, example.shape[-1], halo, name, version)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True), encoding="utf-8")
    package = folder / "package.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(folder / file, file)
    return package


def _describe(
    folder: Path,
    config: NetworkConfig,
    channels: Sequence[str],
    weights: Path,
    tile: int,
    halo: int,
    name: str,
    version: str | None,
) -> dict[str, Any]:
    size: dict[str, Any] = {} if config.mpp is None else {"scale": config.mpp, "unit": "micrometer"}
    same = {axis: {"tensor_id": "image", "axis_id": axis} for axis in "yx"}
    described: dict[str, Any] = {
        "type": "model",
        "format_version": _FORMAT,
        "name": name,
        "description": f"Segments histology images into {', '.join(config.classes)}.",
        "timestamp": datetime.now(UTC).isoformat(),
        "authors": [{"name": "microseg"}],
        "cite": [{"text": "Hou, Liu et al., Dual Adaptive Pyramid Network, MICCAI 2019", "url": _PAPER}],
        "license": "Apache-2.0",
        "documentation": "README.md",
        "tags": ["histology", "segmentation", "2d", "rgb", "pytorch"],
        "inputs": [
            {
                "id": "image",
                "description": "RGB, 0..255",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": ["red", "green", "blue"]},
                    *({"type": "space", "id": axis, "size": tile, **size} for axis in "yx"),
                ],
                "test_tensor": _file(folder / "test_input.npy"),
                "data": {"type": "float32", "range": [0.0, 255.0]},
                "preprocessing": [
                    {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
                    {"id": "scale_linear", "kwargs": {"gain": 1 / 255, "offset": 0.0}},
                ],
            }
        ],
        "outputs": [
            {
                "id": "probabilities",
                "description": "Probability of each class" + (", and interior of objects" if config.instances else ""),
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": [_identifier(label) for label in channels]},
                    *({"type": "space", "id": axis, "size": same[axis], "halo": halo, **size} for axis in "yx"),
                ],
                "test_tensor": _file(folder / "test_output.npy"),
                "data": {"type": "float32", "range": [0.0, 1.0]},
            }
        ],
        "weights": {"torchscript": _file(weights) | {"pytorch_version": torch.__version__.split("+")[0]}},
    }
    if config.instances:
        described["attachments"] = [_file(folder / POST_PROCESSING_FILE)]
    return described if version is None else described | {"version": version}


def _file(path: Path) -> dict[str, str]:
    return {"source": path.name, "sha256": file_sha256(path)}


def _identifier(name: str) -> str:
    """A name as the specification requires: letters, digits and underscores."""
    cleaned = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)
    return cleaned if cleaned[:1].isalpha() else f"class_{cleaned}"
