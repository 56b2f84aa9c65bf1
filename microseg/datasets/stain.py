"""Color deconvolution: stain vectors, optical density, and the Beer-Lambert law between amounts of stain and RGB."""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from microseg.errors import DataError

__all__ = ["STAINS", "STAIN_VECTORS", "optical_density", "stain_amounts", "stain_matrix", "transmitted_light"]

STAINS = ("hematoxylin", "eosin", "dab")

# Optical density of each stain in the red, green and blue channel (Ruifrok & Johnston 2001).
STAIN_VECTORS = MappingProxyType(
    {
        "hematoxylin": (0.65, 0.70, 0.29),
        "eosin": (0.07, 0.99, 0.11),
        "dab": (0.27, 0.57, 0.78),
    }
)


def stain_matrix(stains: Sequence[str] = STAINS) -> npt.NDArray[np.float32]:
    """Stain matrix: the optical-density vectors of stains at unit length, one per row.

    Args:
        stains: Names in ``STAIN_VECTORS``.

    Shape:
        Returns (S, 3): stains by RGB channel, each row of length 1.

    Raises:
        DataError: A stain is unknown.

    Reference:
        Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001.
    """
    unknown = [name for name in stains if name not in STAIN_VECTORS]
    if unknown:
        raise DataError(f"expected stains of {sorted(STAIN_VECTORS)}, got {unknown}; use one of those names")
    rows = np.array([STAIN_VECTORS[name] for name in stains], dtype=np.float64).reshape(-1, 3)  # (S, 3)
    unit: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def transmitted_light(amounts: npt.NDArray[np.float32], stains: Sequence[str] = STAINS) -> npt.NDArray[np.float32]:
    """Transmittance of stained tissue by the Beer-Lambert law: ``10 ** -(amounts @ vectors)``.

    Args:
        amounts: Amount of each stain, in optical density (base 10) along its unit vector; 0 = none.
        stains: Names of the stains of the last axis.

    Shape:
        amounts (..., S) -> light (..., 3).

    Returns:
        The transmitted fraction in each RGB channel: 1 = clear glass, 0 = opaque.

    Raises:
        DataError: A stain is unknown, or the last axis does not have one entry per stain.
    """
    matrix = stain_matrix(stains)  # (S, 3)
    if amounts.shape[-1] != len(matrix):
        raise DataError(
            f"expected {len(matrix)} amounts per pixel (one per stain of {list(stains)}), got {amounts.shape[-1]}; "
            "put the stains on the last axis"
        )
    density = np.einsum(
        "...s,sc->...c", amounts.astype(np.float32), matrix
    )  # (..., 3); without BLAS: the same bits on every machine
    light: npt.NDArray[np.float32] = np.exp(density * np.float32(-np.log(10.0)))
    return light


def optical_density(
    image: npt.NDArray[np.uint8], white: Sequence[float] = (255.0, 255.0, 255.0)
) -> npt.NDArray[np.float32]:
    """Optical density (base 10) of an RGB image.

    Args:
        image: RGB, 0..255. A value of 0 counts as 1, so the result is finite.
        white: RGB value of clear glass, 0..255. Brighter pixels count as clear glass.

    Shape:
        (..., 3) -> (..., 3).

    Returns:
        Density of each channel: 0 = clear glass, 1 = a tenth of the light is transmitted.
    """
    light = np.maximum(image.astype(np.float32), 1.0) / np.asarray(white, dtype=np.float32)
    density: npt.NDArray[np.float32] = -np.log10(np.minimum(light, 1.0))
    return density


def stain_amounts(
    image: npt.NDArray[np.uint8],
    stains: Sequence[str] = STAINS,
    white: Sequence[float] = (255.0, 255.0, 255.0),
) -> npt.NDArray[np.float32]:
    """Amount of each stain in an image: the least-squares inverse of :func:`transmitted_light`.

    Args:
        image: RGB, 0..255.
        stains: The one to three stains of the tissue.
        white: RGB value of clear glass, 0..255.

    Shape:
        (..., 3) -> (..., S).

    Returns:
        Amounts in optical density; slightly negative values come from noise and other colors.

    Reference:
        Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001.

    Raises:
        DataError: A stain is unknown.
    """
    inverse = np.linalg.pinv(stain_matrix(stains).astype(np.float64)).astype(np.float32)  # (3, S)
    amounts: npt.NDArray[np.float32] = optical_density(image, white) @ inverse  # (..., S)
    return amounts
