"""How the images of a batch are segmented, and what is written of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from microseg.config.params import InferenceSettings
from microseg.outputs.files import OUTPUTS, check_outputs

__all__ = ["HALO", "SLIDE_MEGAPIXELS", "TILE", "BatchOptions", "Sizes"]

_DEFAULTS = InferenceSettings()
TILE, HALO, SLIDE_MEGAPIXELS = _DEFAULTS.tile_size, _DEFAULTS.halo, _DEFAULTS.slide_megapixels

Sizes = float | Mapping[str, float] | None
"""Microns per pixel of all images, or of some by file name; None, or not named: what the files say."""


@dataclass(frozen=True)
class BatchOptions:
    """What is asked of a batch, the same for all its images, in whatever parts they are done.

    Attributes:
        outputs: see `Segmentation.save`.
        mpp: see `Sizes`.
        slide_megapixels: images above this are segmented as slides, a few rows at a time; see `segment_slide`.
        skip_glass: of slides, leave out tiles of bare glass.
        keep: also skip what another model or other settings have made of the same file content.

    Raises:
        SettingsError: an output is unknown.
    """

    outputs: Collection[str] = OUTPUTS
    mpp: Sizes = None
    slide_megapixels: float = SLIDE_MEGAPIXELS
    skip_glass: bool = True
    keep: bool = False

    def __post_init__(self) -> None:
        check_outputs(self.outputs)
