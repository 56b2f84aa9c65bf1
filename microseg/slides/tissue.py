"""Tissue detection: which parts of a slide are tissue and which are glass."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from microseg.slides.modality import Modality, image_modality
from microseg.slides.slide import Slide

__all__ = ["THUMBNAIL_SIDE", "TissueMap", "find_tissue", "tissue_map"]

THUMBNAIL_SIDE = 1536
"""Longer side of the thumbnail that tissue is detected on, in pixels."""
_DENSITY = 0.05  # optical density, in the most absorbed channel, above which a pixel is tissue
_GLASS_PERCENTILE = 99
_DARKEST_GLASS = 180  # a slide without brighter pixels has no glass to compare with
_MARGIN = 2  # thumbnail pixels around tissue that count as tissue


@dataclass(frozen=True)
class TissueMap:
    """Map of the tissue of a slide.

    Attributes:
        tissue: Whether each pixel of a thumbnail of the slide is tissue.

    Shape:
        tissue (h, w)
    """

    tissue: npt.NDArray[np.bool_]

    @property
    def fraction(self) -> float:
        """Fraction of the slide that is tissue."""
        return float(self.tissue.mean())

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether there is tissue in a region, given as fractions (0..1) of the slide's width and height."""
        height, width = self.tissue.shape
        rows = slice(int(top * height), max(int(top * height) + 1, -int(-bottom * height // 1)))
        columns = slice(int(left * width), max(int(left * width) + 1, -int(-right * width // 1)))
        return bool(self.tissue[rows, columns].any())


def find_tissue(slide: Slide, *, readers: int = 1) -> TissueMap:
    """Detect tissue on a thumbnail of the slide.

    A pixel is glass where it is as bright and colorless as the brightest part of the slide, to within an optical
    density of 0.05, and not next to tissue. A faint counterstain has about 0.1. A slide without a bright part is
    tissue everywhere, and so is one that is no stained brightfield: in fluorescence the brightest part is tissue, and
    in gray images brightness tells nothing.

    Args:
        slide: The slide; its coarsest sufficient level is read.
        readers: Threads that read it; see `Slide.thumbnail`.
    """
    return tissue_map(slide.thumbnail(THUMBNAIL_SIDE, readers=readers))


def tissue_map(thumbnail: npt.NDArray[np.uint8]) -> TissueMap:
    """Detect tissue on a thumbnail; see `find_tissue`.

    Shape:
        (h, w, 3)
    """
    from scipy import ndimage  # many commands look at no slide

    glass = np.percentile(thumbnail.reshape(-1, 3), _GLASS_PERCENTILE, axis=0)  # (3,)
    if glass.min() < _DARKEST_GLASS or image_modality(thumbnail) in (Modality.FLUORESCENCE, Modality.GRAY):
        return TissueMap(np.ones(thumbnail.shape[:2], np.bool_))
    threshold = glass * 10**-_DENSITY  # (3,)
    smooth = ndimage.uniform_filter(thumbnail, size=(3, 3, 1))  # suppresses the noise of the camera
    absorbs = (smooth < threshold).any(axis=2)  # (h, w)
    return TissueMap(ndimage.binary_dilation(absorbs, iterations=_MARGIN))
