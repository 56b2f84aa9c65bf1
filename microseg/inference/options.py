"""How the images of a batch are segmented, and what is written of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from microseg.inference.outputs import OUTPUTS, check_outputs

__all__ = ["HALO", "SLIDE_MEGAPIXELS", "TILE", "BatchOptions", "Sizes"]

TILE, HALO = 640, 96
"""Usual tile and halo, in pixels: three of the body encoders' strides, from where on a tile's border changes no more
than where tiles happen to lie, which the pyramid pooling sees."""

SLIDE_MEGAPIXELS = 16.0
"""Images above this are segmented as slides: as a whole they would take about 60 bytes a pixel."""

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
