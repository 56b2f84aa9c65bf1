"""Stains of objects, and what is measured in the objects of an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.config.params import InferenceSettings
from microseg.datasets.stain import STAIN_VECTORS, optical_density
from microseg.errors import SettingsError
from microseg.outputs.pixel_amounts import Intensities, PixelAmounts
from microseg.outputs.record import ImageInfo
from microseg.outputs.stain_estimation import estimate_stains
from microseg.slides.channels import ReadOptions

__all__ = ["DAB", "KNOWN_STAINS", "StainOptions", "Stains", "image_amounts"]

Vector = tuple[float, float, float]

_RING_UM, _RING_PX = 5.0, 10  # width of the ring around an object; in pixels where the pixel size is unknown

KNOWN_STAINS = {
    name: tuple(vector) for name, vector in zip(("hematoxylin", "eosin", "dab"), STAIN_VECTORS.tolist(), strict=True)
}
"""Optical density of each stain in the red, green and blue channel."""

DAB = "dab"
"""Stain that makes an object positive."""


@dataclass(frozen=True)
class StainOptions:
    """Which stains are measured in the objects of images, and how.

    Attributes:
        names: Names of the stains, out of `KNOWN_STAINS`; empty for none.
        vectors: Vectors of some of them in place of the published ones.
        estimate: Whether the vectors are estimated from each image, of two stains; see `estimate_stains`.
        dab_threshold: Mean optical density of DAB in an object from which on it is positive.

    Raises:
        SettingsError: A name is unknown, vectors are not independent, or stains cannot be estimated.
    """

    names: tuple[str, ...] = ()
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    estimate: bool = False
    dab_threshold: float = 0.2

    def __post_init__(self) -> None:
        if unused := sorted(set(self.vectors) - set(self.names)):
            raise SettingsError(
                f"Expected vectors of measured stains ({', '.join(self.names) or 'none'}), got {', '.join(unused)}: "
                "name them in inference.stains."
            )
        if self.estimate and len(self.names) != 2:
            raise SettingsError(
                f"Expected two stains to estimate vectors of, got {', '.join(self.names) or 'none'}: correct "
                "inference.stains, or state the vectors."
            )
        if self.names:
            Stains.named(self.names, ring=1, vectors=self.vectors)  # raises an error

    @classmethod
    def of(cls, settings: InferenceSettings) -> "StainOptions":
        """The options in the parameters."""
        given = settings.stain_vectors
        vectors = {} if isinstance(given, str) else given
        return cls(settings.stains, vectors, given == "estimated", settings.dab_threshold)

    def facts(self, pixels: Callable[[], npt.NDArray[np.uint8]]) -> dict[str, Any]:
        """What `ImageInfo` has of an image whose stained pixels are read by a function.

        Raises:
            DataError: See `estimate_stains`.
        """
        if not self.names:
            return {}
        vectors = {name: self.vectors.get(name, KNOWN_STAINS[name]) for name in self.names}
        found = estimate_stains(pixels(), vectors) if self.estimate else None
        facts = {
            "stains": self.names,
            "stain_vectors": found or vectors,
            "stains_estimated": found is not None,
            "stains_too_pale": self.estimate and found is None,
        }
        return facts | ({"dab_threshold": self.dab_threshold} if DAB in self.names else {})

    def same(self, image: ImageInfo) -> bool:
        """Whether an image was measured with these options."""
        if image.stains != self.names or (image.stains_estimated or image.stains_too_pale) != self.estimate:
            return False
        if image.dab_threshold != (self.dab_threshold if DAB in self.names else None):
            return False
        stated = {name: self.vectors.get(name, KNOWN_STAINS[name]) for name in self.names}
        return self.estimate or image.stain_vectors == stated


@dataclass(frozen=True)
class Stains(PixelAmounts):
    """Stains to measure.

    Attributes:
        names: Names of one to three stains.
        ring: Width of the ring around an object, in pixels of the mask.
        vectors: Optical density of each in the red, green and blue channel.

    Raises:
        SettingsError: There are no or too many stains, or their vectors are not independent.
    """

    quantity = "od"

    vectors: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 3 or len(self.names) != len(self.vectors):
            raise SettingsError(f"Expected one to three stains and a vector for each, got {self.names}.")
        if self.ring < 0:
            raise SettingsError(f"Expected a ring of 0 pixels or more, got {self.ring}.")
        if np.linalg.matrix_rank(self._unit, tol=0.05) < len(self.names):
            raise SettingsError(
                f"Expected stains of different colors, got {dict(zip(self.names, self.vectors, strict=True))}."
            )

    @classmethod
    def named(cls, names: Sequence[str], ring: int, vectors: Mapping[str, Vector] | None = None) -> "Stains":
        """Stains by their names, with the given or the published vectors.

        Raises:
            SettingsError: A name is not one of `KNOWN_STAINS`.
        """
        if unknown := sorted(set(names) - set(KNOWN_STAINS)):
            raise SettingsError(f"Expected stains out of {', '.join(KNOWN_STAINS)}, got {', '.join(unknown)}.")
        return cls(tuple(names), ring, tuple((vectors or {}).get(name, KNOWN_STAINS[name]) for name in names))

    @cached_property
    def _unit(self) -> npt.NDArray[np.float64]:
        vectors = np.array(self.vectors, np.float64)  # (S, 3)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def amounts(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Optical density of each stain, by color deconvolution.

        Of two stains, what neither explains is left out, along the vector that is perpendicular to both; of one stain
        it is the part of the density along its vector.

        Args:
            image: RGB, 0..255.

        Shape:
            (..., 3) → (..., S)

        Reference:
            Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001.
        """
        unmix = np.linalg.pinv(self._unit).astype(np.float32)  # (3, S): least squares
        amounts: npt.NDArray[np.float32] = optical_density(image) @ unmix
        return amounts


def image_amounts(image: ImageInfo) -> PixelAmounts | None:
    """What is measured in the objects of an image, with rings of 5 µm, as QuPath's cell expansion; None for nothing.

    Of an image of channels their intensities, else the stains that are asked for.
    """
    ring = _RING_PX if image.label_mpp is None else max(1, round(_RING_UM / image.label_mpp))
    if channels := ReadOptions.from_record(image.provenance.inference).channels:
        return Intensities(tuple(channel.name for channel in channels), ring)
    return Stains.named(image.stains, ring, image.stain_vectors) if image.stains else None
