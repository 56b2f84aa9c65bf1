"""What a network is, as one record that is stored as JSON beside its weights."""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, field_validator

from microseg.config.params import ArchitectureSettings
from microseg.models.encoder_normalization import IMAGENET_MEAN, IMAGENET_STD, encoder_normalization

__all__ = ["NetworkConfig"]

Triple = tuple[float, float, float]


class NetworkConfig(ArchitectureSettings):
    """Architecture of a `PyramidSegmenter` and the meaning of its input and output."""

    classes: tuple[str, ...]
    """Names of the classes in order of their index; the first is the background. At least two."""
    mean: Triple = IMAGENET_MEAN
    """Mean of each input channel, for inputs in 0..1; pretrained encoders expect the one they were trained with."""
    std: Triple = IMAGENET_STD
    """Standard deviation of each input channel, for inputs in 0..1."""
    mpp: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Microns per pixel at which the network was trained; None if unknown."""

    @classmethod
    def from_settings(cls, settings: ArchitectureSettings, classes: Sequence[str], mpp: float | None) -> Self:
        """Configure a network for some classes and a pixel size, with the normalization its encoder expects."""
        mean, std = encoder_normalization(settings.encoder)
        architecture = {name: getattr(settings, name) for name in ArchitectureSettings.model_fields}
        return cls(classes=tuple(classes), mpp=mpp, mean=mean, std=std, **architecture)

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(classes) <= 255:
            raise ValueError(f"expected 2 to 255 classes (background first), got {len(classes)}; list all class names")
        if len(set(classes)) != len(classes) or not all(name.strip() for name in classes):
            raise ValueError(f"expected distinct, non-empty class names, got {list(classes)}; rename the doubles")
        return classes

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: Triple) -> Triple:
        if min(std) <= 0:
            raise ValueError(f"expected positive standard deviations, got {std}; inputs are in 0..1")
        return std
