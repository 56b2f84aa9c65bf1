"""The Beer-Lambert law: stains of a section to RGB light, and an RGB image to its optical density."""

import numpy as np
import numpy.typing as npt

__all__ = ["STAIN_VECTORS", "optical_density", "transmitted_light"]

_MEASURED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNIT = _MEASURED / np.linalg.norm(_MEASURED, axis=1, keepdims=True)

STAIN_VECTORS: npt.NDArray[np.float32] = _UNIT.astype(np.float32)
"""Optical density of hematoxylin, eosin and DAB in the red, green and blue channel, at unit length, (3, 3).

Reference:
    Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001.
"""


def transmitted_light(amounts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Transmittance of stained tissue: ``10 ** -(amounts @ STAIN_VECTORS)``.

    Args:
        amounts: Hematoxylin, eosin and DAB, in optical density (base 10) along each stain's unit vector; 0 = none.

    Shape:
        (..., 3) → (..., 3)

    Returns:
        The transmitted fraction in each RGB channel: 1 = clear glass, 0 = opaque.
    """
    # (..., 3); without BLAS: the same bits on every machine
    density = np.einsum("...s,sc->...c", amounts.astype(np.float32), STAIN_VECTORS)
    light: npt.NDArray[np.float32] = np.exp(density * np.float32(-np.log(10.0)))
    return light


def optical_density(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Optical density (base 10) of an RGB image, relative to pure white.

    Args:
        image: RGB, 0..255. A value of 0 counts as 1, so the result is finite.

    Shape:
        (..., 3) → (..., 3)

    Returns:
        Density of each channel: 0 = clear glass, 1 = a tenth of the light is transmitted.
    """
    density: npt.NDArray[np.float32] = -np.log10(np.maximum(image.astype(np.float32), 1.0) / np.float32(255.0))
    return density
