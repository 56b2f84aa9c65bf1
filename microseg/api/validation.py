"""Validation of a registered version, before batches use it: whoever promoted it."""

from collections.abc import Callable

import numpy as np

from microseg.errors import MicrosegError, TransientError
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter
from microseg.registry.decision import MET, NOT_MET, RuleResult
from microseg.registry.version import ModelVersion
from microseg.synthetic.labs import LAB_A, generate_image

__all__ = ["validate_version"]

_SIZE = 160  # pixels of the test image
_SUM_TOLERANCE = 1e-3


def validate_version(
    version: ModelVersion,
    load: Callable[[ModelVersion], PyramidSegmenter],
    *,
    engine: Callable[[PyramidSegmenter], Engine] = Engine,
) -> tuple[RuleResult, ...]:
    """Check whether a version can be used for batches.

    It must hold a network saved by microseg, whose weights load as plain tensors (nothing in its files is executed),
    and segment an image.

    Args:
        version: The version.
        load: Downloads and loads the network of a version.
        engine: Creates the inference engine of a network.

    Returns:
        The results in order; a network that cannot be loaded is not checked further.
    """
    try:
        network = load(version)
    except TransientError:  # the version may be valid
        raise
    except MicrosegError as error:
        return (RuleResult(NOT_MET, "network", _message(error)),)
    loaded = RuleResult(MET, "network", "The files hold a network of microseg, and its weights load as plain tensors.")
    return loaded, _check_segmentation(network, engine)


def _check_segmentation(network: PyramidSegmenter, engine: Callable[[PyramidSegmenter], Engine]) -> RuleResult:
    """Segment one synthetic section at the network's scale."""
    image, _ = generate_image(LAB_A, _SIZE, network.config.mpp or 1.0, seed=0)
    name, classes = "test image", len(network.config.classes)
    try:
        probabilities = engine(network).probabilities(image, network.config.mpp)  # (K, H, W)
    except Exception as error:  # whatever a faulty network raises
        return RuleResult(NOT_MET, name, f"It cannot segment an image: {_message(error)}")
    if probabilities.shape != (classes, _SIZE, _SIZE):
        fault = f"Expected probabilities ({classes}, {_SIZE}, {_SIZE}), got {probabilities.shape}."
    elif not np.allclose(probabilities.sum(axis=0), 1, atol=_SUM_TOLERANCE):  # or NaN
        fault = "Expected probabilities that sum to one, got others: the weights are damaged, train again."
    else:
        return RuleResult(MET, name, f"It segments an image of {_SIZE} pixels into {classes} classes.")
    return RuleResult(NOT_MET, name, fault)


def _message(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
