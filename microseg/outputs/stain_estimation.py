"""Stain vectors of an image, estimated from its pixels."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from microseg.datasets.stain import optical_density
from microseg.errors import DataError

__all__ = ["estimate_stains"]

Vector = tuple[float, float, float]

_STAINED = 0.065  # density in each channel below which a pixel shows no stain; Macenko's 0.15 to the base of e
_FEWEST = 1000  # stained pixels
_MOST = 2**20  # pixels that are looked at
_EXTREME = 1.0  # percentile of the angles at each end
_CLOSEST = 0.985  # cosine between two vectors above which there is one stain only
_LEAST_LIKE = 0.75  # cosine to the published vector below which a vector is not that stain


def estimate_stains(image: npt.NDArray[np.uint8], known: Mapping[str, Vector]) -> dict[str, Vector] | None:
    """Estimate the vectors of two stains.

    The optical densities of stained pixels lie near a plane; the two stains are its extreme directions. Each is the one
    that is nearer to the published vector.

    Args:
        image: RGB, 0..255.
        known: Published vectors of two stains, by name.

    Shape:
        (..., 3)

    Returns:
        The vectors, at unit length; None where fewer than a thousand pixels are stained.

    Raises:
        DataError: There are not two stains, or the image does not show them.

    Reference:
        Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
    """
    names = list(known)
    if len(names) != 2:
        raise DataError(f"Expected two stains to estimate, got {', '.join(names) or 'none'}: state inference.stains.")
    pixels = image.reshape(-1, 3)
    density = optical_density(pixels[:: max(1, -(-len(pixels) // _MOST))]).astype(np.float64)  # (N, 3)
    density = density[(density > _STAINED).all(axis=1)]
    if len(density) < _FEWEST:
        return None
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, :0:-1]  # (3, 2), the largest first
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    across, along = (density @ plane).T[::-1]
    angles = np.arctan2(across, along)
    ends = np.percentile(angles, [_EXTREME, 100 - _EXTREME])
    found = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane.T  # (2, 3)
    found = np.maximum(found, 0)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    wanted = np.array([known[name] for name in names])
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    alike = wanted @ found.T
    if alike[0, 0] + alike[1, 1] < alike[0, 1] + alike[1, 0]:
        found, alike = found[::-1], alike[:, ::-1]
    if found[0] @ found[1] > _CLOSEST or alike.diagonal().min() < _LEAST_LIKE:
        shown = "; ".join(" ".join(f"{value:.2f}" for value in vector) for vector in found)
        raise DataError(
            f"Expected an image with {' and '.join(names)} to estimate vectors from, got the colors {shown}: state the "
            "vectors of this lab in inference.stain_vectors."
        )
    return {name: (float(v[0]), float(v[1]), float(v[2])) for name, v in zip(names, found, strict=True)}
