"""Where a slide shows tissue and where bare glass."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.slides.slide import Slide

__all__ = ["TissueMap", "find_tissue"]

_LONGEST = 1536  # pixels of the picture that is looked at
_DENSITY = 0.05  # optical density, of the strongest absorbed color, from which on a pixel is tissue
_GLASS_PERCENTILE = 99
_DARKEST_GLASS = 180  # where nothing is brighter, there is no glass to compare with
_MARGIN = 2  # pixels around tissue that count as tissue


@dataclass(frozen=True)
class TissueMap:
    """Where a slide shows tissue.

    Attributes:
        tissue: (h, w), the whole slide, small.
    """

    tissue: npt.NDArray[np.bool_]

    @property
    def fraction(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.tissue.mean())

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether there is tissue in a region, given as shares (0..1) of the slide's width and height."""
        height, width = self.tissue.shape
        rows = slice(int(top * height), max(int(top * height) + 1, -int(-bottom * height // 1)))
        columns = slice(int(left * width), max(int(left * width) + 1, -int(-right * width // 1)))
        return bool(self.tissue[rows, columns].any())


def find_tissue(slide: Slide) -> TissueMap:
    """Tell tissue from bare glass on a small picture of the slide.

    Only what is certainly glass counts as such: as bright and colorless as the brightest part of the slide, to within
    an optical density of 0.05, and not beside tissue. A faint counterstain has about 0.1. Where a slide has no bright
    part, everything is tissue.

    Args:
        slide: it is read at its coarsest fitting level.
    """
    picture = slide.thumbnail(_LONGEST)  # (h, w, 3)
    glass = np.percentile(picture.reshape(-1, 3), _GLASS_PERCENTILE, axis=0)  # (3,)
    if glass.min() < _DARKEST_GLASS:
        return TissueMap(np.ones(picture.shape[:2], np.bool_))
    threshold = glass * 10**-_DENSITY  # (3,)
    smooth = ndimage.uniform_filter(picture, size=(3, 3, 1))  # noise of the camera is no tissue
    absorbs = (smooth < threshold).any(axis=2)  # (h, w)
    return TissueMap(ndimage.binary_dilation(absorbs, iterations=_MARGIN))
