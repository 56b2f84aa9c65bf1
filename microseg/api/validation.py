"""Is a registered version fit for production? Looked at before batches rely on it, whoever promoted it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microseg.errors import MicrosegError
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.models.network import PyramidSegmenter
from microseg.registry.registry import Registry
from microseg.registry.verdict import stored_verdict
from microseg.registry.version import ModelVersion
from microseg.synthetic.labs import LAB_A, make_section

__all__ = ["ValidationCheck", "validate_version"]

_SIDE = 160  # pixels of the smoke image
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ValidationCheck:
    """One thing that was looked at.

    Attributes:
        name: such as ``"weights"``.
        passed: whether it is as it must be.
        sentence: what was found, and what to do where it is not.
    """

    name: str
    passed: bool
    sentence: str


def validate_version(
    registry: Registry,
    version: ModelVersion,
    cache: Path,
    *,
    engine: Callable[[PyramidSegmenter], Engine] = Engine,
) -> tuple[ValidationCheck, ...]:
    """Look whether a version can be used for batches.

    It must hold a network as microseg saves it, weights that load as plain tensors (nothing in its files is executed),
    segment an image, and have been judged by the gate, whatever the gate found.

    Args:
        registry: where the version is.
        version: which one.
        cache: of downloaded networks; see `Registry.download`.
        engine: makes a network ready, with the tiles of production.

    Returns:
        The checks in order; those after a network that cannot be loaded are left out.
    """
    report = stored_verdict(version)
    if report is None:
        judged = ValidationCheck(
            "gate report",
            False,
            f"Version {version.version} was never judged: run `microseg evaluate {version.version}`, look at its "
            "model card, then promote it again.",
        )
    else:
        judged = ValidationCheck("gate report", True, f"The gate {report.sentence}.")
    try:
        folder = registry.download(version, cache)
    except MicrosegError as error:
        return ValidationCheck("a microseg segmenter", False, _message(error)), judged
    ours = ValidationCheck("a microseg segmenter", True, "It holds a network's description and its weights.")
    try:
        network = load_network(folder)
    except MicrosegError as error:
        return ours, ValidationCheck("weights", False, _message(error)), judged
    loads = ValidationCheck(
        "weights", True, "The weights load as plain tensors, and are those of the described network."
    )
    return ours, loads, _smoke(network, engine), judged


def _smoke(network: PyramidSegmenter, engine: Callable[[PyramidSegmenter], Engine]) -> ValidationCheck:
    """Segment one drawn section at the network's scale."""
    image, _ = make_section(LAB_A, _SIDE, network.config.mpp or 1.0, seed=0)
    name, classes = "smoke image", len(network.config.classes)
    try:
        probabilities = engine(network).probabilities(image, network.config.mpp)  # (K, H, W)
    except Exception as error:  # whatever a faulty network raises
        return ValidationCheck(name, False, f"It cannot segment an image: {_message(error)}")
    if probabilities.shape != (classes, _SIDE, _SIDE):
        return ValidationCheck(
            name, False, f"Expected ({classes}, {_SIDE}, {_SIDE}) for an image, got {probabilities.shape}."
        )
    if not np.allclose(probabilities.sum(axis=0), 1, atol=_SUM_TOLERANCE):  # NaN is not either
        return ValidationCheck(
            name, False, "Its probabilities are no numbers that sum to one: the weights are damaged."
        )
    return ValidationCheck(name, True, f"It segments an image of {_SIDE} pixels into {classes} classes.")


def _message(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
