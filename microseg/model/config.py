"""What a network is, as one JSON-able record."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "NetworkConfig"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Filters = Annotated[int, Field(ge=1, le=8192)]
Triple = tuple[float, float, float]


class NetworkConfig(BaseModel):
    """Architecture of a `PyramidSegmenter` and the meaning of its input and output.

    Args:
        classes: Names of the classes in order of their index; the first is the background. At least two.
        encoder: ``"blocks"`` (E1…En, own convolution blocks), ``"resnet18"``, ``"resnet50"``, ``"vgg19"`` (the one with
            batch normalisation), or another convolutional body known to timm.
        filters: Filters of E1…En, for encoder ``"blocks"`` only; their number is the number of blocks.
        decoder_filters: Filters of the decoder blocks, deepest first (Dn…D1). None: follows the encoder.
        pyramid_bins: Grid sizes of the pyramid pooling module.
        pyramid_filters: Filters of the pyramid pooling module's output.
        mean: Mean of each input channel, for inputs in 0..1. Pretrained bodies want the ones they were trained with.
        std: Standard deviation of each input channel, for inputs in 0..1.
        mpp: Microns per pixel at which the network was trained; None if unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...]
    encoder: str = "resnet18"
    filters: tuple[Filters, ...] = (32, 64, 128, 256)
    decoder_filters: tuple[Filters, ...] | None = None
    pyramid_bins: tuple[Annotated[int, Field(ge=1, le=64)], ...] = (1, 2, 3, 6)
    pyramid_filters: Filters = 128
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    mpp: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(classes) <= 255:
            raise ValueError(f"expected 2 to 255 classes (background first), got {len(classes)}; list all class names")
        if len(set(classes)) != len(classes) or not all(name.strip() for name in classes):
            raise ValueError(f"expected distinct, non-empty class names, got {list(classes)}; rename the doubles")
        return classes

    @field_validator("filters", "pyramid_bins")
    @classmethod
    def _check_not_empty(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values:
            raise ValueError("expected at least one value, got none; leave the setting out for its default")
        return values

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: Triple) -> Triple:
        if min(std) <= 0:
            raise ValueError(f"expected positive standard deviations, got {std}; inputs are in 0..1")
        return std

    @model_validator(mode="after")
    def _check_decoder(self) -> "NetworkConfig":
        if self.encoder == "blocks" and self.decoder_filters is not None:
            expected, given = len(self.filters), len(self.decoder_filters)
            if expected != given:
                raise ValueError(f"expected {expected} decoder_filters, one per encoder block, got {given}")
        return self
