"""Is a registered version fit for production? Looked at before batches rely on it, whoever promoted it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microseg.data.synthetic import LAB_A, make_section
from microseg.errors import MicrosegError
from microseg.inference import Engine
from microseg.model import PyramidSegmenter, load_network
from microseg.registry import ModelVersion, Registry, gate_report

__all__ = ["Check", "check_fitness"]

_SIDE = 160  # pixels of the smoke image
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: such as ``"weights"``.
        passed: whether it is as it must be.
        sentence: what was found, and what to do where it is not.
    """

    name: str
    passed: bool
    sentence: str


def check_fitness(
    registry: Registry,
    version: ModelVersion,
    cache: Path,
    *,
    engine: Callable[[PyramidSegmenter], Engine] = Engine,
) -> tuple[Check, ...]:
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
    report = gate_report(version)
    if report is None:
        judged = Check(
            "gate report",
            False,
            f"Version {version.version} was never judged: run `microseg evaluate {version.version}`, look at its "
            "model card, then promote it again.",
        )
    else:
        judged = Check("gate report", True, f"The gate {report.sentence}.")
    try:
        folder = registry.download(version, cache)
    except MicrosegError as error:
        return Check("a microseg segmenter", False, _told(error)), judged
    ours = Check("a microseg segmenter", True, "It holds a network's description and its weights.")
    try:
        network = load_network(folder)
    except MicrosegError as error:
        return ours, Check("weights", False, _told(error)), judged
    loads = Check("weights", True, "The weights load as plain tensors, and are those of the described network.")
    return ours, loads, _smoke(network, engine), judged


def _smoke(network: PyramidSegmenter, engine: Callable[[PyramidSegmenter], Engine]) -> Check:
    """Segment one drawn section at the network's scale."""
    image, _ = make_section(LAB_A, _SIDE, network.config.mpp or 1.0, seed=0)
    name, classes = "smoke image", len(network.config.classes)
    try:
        probabilities = engine(network).probabilities(image, network.config.mpp)  # (K, H, W)
    except Exception as error:  # whatever a faulty network raises
        return Check(name, False, f"It cannot segment an image: {_told(error)}")
    if probabilities.shape != (classes, _SIDE, _SIDE):
        return Check(name, False, f"Expected ({classes}, {_SIDE}, {_SIDE}) for an image, got {probabilities.shape}.")
    if not np.allclose(probabilities.sum(axis=0), 1, atol=_SUM_TOLERANCE):  # NaN is not either
        return Check(name, False, "Its probabilities are no numbers that sum to one: the weights are damaged.")
    return Check(name, True, f"It segments an image of {_SIDE} pixels into {classes} classes.")


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
