"""Network files: safetensors and JSON, which execute nothing when read."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from microseg.errors import MicrosegError, ParseError, WeightsError
from microseg.files import atomic_write, write_text_file
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE, NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.parsing import parse_json, read_text

__all__ = ["load_network", "save_network", "some_names", "weights_digest"]

_FORMAT = 2
_EARLIER_INTERIOR = ("head.interior.weight", "head.interior_logit.weight")
"""A tensor of instance heads of before `separate_objects` took tops of the interior for seeds, and its name now."""


def save_network(folder: Path, network: PyramidSegmenter) -> None:
    """Write ``weights.safetensors`` and ``network.json`` into a folder, each atomically.

    Args:
        folder: Created where missing; the files of an earlier network in it are replaced.
        network: The network; its parameters and batch-norm statistics are saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = _serialize(network)
    description = {
        "format": _FORMAT,
        "architecture": "PyramidSegmenter",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config": network.config.model_dump(mode="json"),
    }
    with atomic_write(folder / WEIGHTS_FILE, len(weights)) as file:
        file.write_bytes(weights)
    write_text_file(folder / CONFIG_FILE, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights and statistics, as `save_network` writes it into ``network.json``."""
    return hashlib.sha256(_serialize(network)).hexdigest()


def load_network(folder: Path, device: str | torch.device = "cpu") -> PyramidSegmenter:
    """Read a network written by `save_network`; nothing in the files is executed.

    Args:
        folder: Folder of ``weights.safetensors`` and ``network.json``.
        device: Device of the network.

    Returns:
        The network, in evaluation mode.

    Raises:
        WeightsError: A file is missing, damaged, of another format version, or the weights are of another architecture,
            or not finite.
    """
    config, digest = _read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    try:
        if not path.is_file():
            raise FileNotFoundError("found no such file")
        data = path.read_bytes()
        tensors = load_tensors(data)
    except Exception as error:  # damaged files make it raise nearly anything
        raise WeightsError(
            f"expected a complete safetensors file, {path} is not one ({error}); download the network again"
        ) from error
    with suppress(NotImplementedError, RuntimeError), torch.device("meta"):  # some encoders cannot be built there
        _check_match(tensors, _build(config, folder).state_dict(), path)  # before memory is taken for it
    network = _build(config, folder)
    _check_match(tensors, network.state_dict(), path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise WeightsError(
            f"expected the weights that {CONFIG_FILE} was written with, {path} has another SHA-256; "
            "the two files are of different networks or damaged: download the network again"
        )
    if bad := sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()):
        raise WeightsError(
            f"expected finite weights, {path} has NaN or infinite values in {some_names(bad)}; its training diverged: "
            "train or adapt again with a lower learning rate, and use another version until then"
        )
    network.load_state_dict(tensors)
    return network.to(device).eval()


def _build(config: NetworkConfig, folder: Path) -> PyramidSegmenter:
    try:
        return PyramidSegmenter(config)
    except (MicrosegError, ValueError, TypeError) as error:  # its encoder or head may be of a package not installed
        raise WeightsError(f"{folder / CONFIG_FILE} describes a network that cannot be built: {error}") from error


def some_names(names: list[str], limit: int = 4) -> str:
    """The first names of a list, for an error."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _serialize(network: nn.Module) -> bytes:
    """Parameters and batch-norm statistics as safetensors."""
    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


def _read_config(path: Path) -> tuple[NetworkConfig, str]:
    try:
        description = parse_json(read_text(path))
    except ParseError as error:
        raise WeightsError(
            f"expected a network's description in {path}, got {error}; correct the folder, or download it again"
        ) from error
    found = description.get("format") if isinstance(description, dict) else type(description).__name__
    if found != _FORMAT:
        advice = "train the network again with this version" if found == 1 else "update microseg"
        raise WeightsError(
            f"expected a network of format {_FORMAT} in {path}, got {found!r}, of another microseg; {advice}"
        )
    try:
        config = NetworkConfig.model_validate_json(json.dumps(description["config"]))
        return config, str(description["weights_sha256"])
    except (KeyError, ValidationError) as error:
        raise WeightsError(f"expected a network's description in {path}, got {error}") from error


def _check_match(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    wrong = sorted(
        f"{name} {_kind(tensors[name])} instead of {_kind(expected[name])}"
        for name in expected.keys() & tensors.keys()
        if _kind(tensors[name]) != _kind(expected[name])
    )
    faults = (("lacks", missing), ("has unknown", extra), ("has", wrong))
    if _EARLIER_INTERIOR[0] in extra and _EARLIER_INTERIOR[1] in missing:
        raise WeightsError(
            f"expected an instance head of this microseg, {path} has one of an earlier microseg, whose interior is "
            "scaled otherwise: its objects would be separated wrongly; train the network again with this version"
        )
    found = "; ".join(f"{verb} {some_names(names)}" for verb, names in faults if names)
    if found:
        raise WeightsError(
            f"expected the weights of the network in {CONFIG_FILE}, {path} {found}; "
            "the two files are of different networks: download the network again"
        )


def _kind(tensor: Tensor) -> str:
    """Shape of a tensor; its type, too, where it is not the usual one."""
    kind = "" if tensor.dtype in (torch.float32, torch.int64) else f"{str(tensor.dtype).removeprefix('torch.')} "
    return f"{kind}{tuple(tensor.shape)}"
