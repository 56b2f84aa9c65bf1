"""Configuration of a network, which is stored as JSON beside its weights."""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from microseg.config.section import Section
from microseg.config.training_params import ArchitectureSettings

__all__ = ["CONFIG_FILE", "IMAGENET_MEAN", "IMAGENET_STD", "WEIGHTS_FILE", "EncoderWeights", "NetworkConfig", "Triple"]

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "network.json"

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class EncoderWeights(Section):
    """Origin of the weights that the encoder was initialized with."""

    source: str
    """Name of the file, or ``timm: <model>`` for weights from timm's hub."""
    sha256: str
    """SHA-256 of the file; of the tensors, for weights from timm's hub."""
    license: str = "not stated"
    """License of the weights."""


class NetworkConfig(ArchitectureSettings):
    """Architecture of a `PyramidSegmenter` and the meaning of its input and output."""

    classes: tuple[str, ...]
    """Class names in order of their index, background first; at least two."""
    mean: Triple = IMAGENET_MEAN
    """Mean of each input channel that the encoder expects, for inputs in 0..1."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    """Standard deviation of each input channel that the encoder expects, for inputs in 0..1."""
    inputs: tuple[str, ...] = ()
    """Names of the channels that become red, green and blue, as in ``lab.yaml``; empty for gray and RGB images."""
    mpp: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Microns per pixel at which the network was trained; None if unknown."""
    smallest_instance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Area below which there is no object of the classes in ``instances``, in pixels at the model's scale."""
    encoder_weights: EncoderWeights | None = None
    """Origin of the encoder's initial weights; None for random ones."""

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(classes) <= 255:
            raise ValueError(f"expected 2 to 255 classes (background first), got {len(classes)}; list all class names")
        if len(set(classes)) != len(classes) or not all(name.strip() for name in classes):
            raise ValueError(f"expected distinct, non-empty class names, got {list(classes)}; rename the duplicates")
        return classes

    @model_validator(mode="after")
    def _check_instances(self) -> Self:
        if unknown := sorted(set(self.instances) - set(self.classes[1:])):
            raise ValueError(
                f"instances: expected foreground classes ({', '.join(self.classes[1:])}), got {', '.join(unknown)}"
            )
        return self

    @property
    def instance_indices(self) -> tuple[int, ...]:
        """Indices of the classes whose touching objects are separated."""
        return tuple(self.classes.index(name) for name in self.instances)
