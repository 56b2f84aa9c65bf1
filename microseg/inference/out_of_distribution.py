"""Out-of-distribution scores of images and slides; see `ReferenceDistribution`."""

import numpy as np
import numpy.typing as npt

from microseg.datasets.appearance import image_features, window_features
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.slides.slide import SlideView
from microseg.slides.tissue import TissueMap

__all__ = ["image_ood_score", "slide_ood_score", "tissue_windows"]

_WINDOWS, _SIDE = 8, 256  # windows of a slide, and their side in pixels at the model's pixel size


def image_ood_score(
    reference: ReferenceDistribution | None, image: npt.NDArray[np.uint8], zoom: float = 1.0
) -> float | None:
    """Score an image: its distance to the nearest lab, divided by that lab's limit.

    Args:
        reference: Reference distribution of the model; None if it has none.
        image: RGB, (H, W, 3).
        zoom: Factor that enlarges the image to the model's pixel size.

    Returns:
        The score; None without a reference distribution, or for an image without tissue.
    """
    return None if reference is None else _score(reference, image_features(image, zoom))


def slide_ood_score(reference: ReferenceDistribution | None, view: SlideView, tissue: TissueMap) -> float | None:
    """Score a slide by windows distributed over its tissue.

    Args:
        reference: See `image_ood_score`.
        view: The slide at the model's pixel size.
        tissue: Where the slide shows tissue.

    Returns:
        See `image_ood_score`.
    """
    if reference is None:
        return None
    windows = tissue_windows(view, tissue)
    return _score(reference, window_features(windows)) if windows else None


def tissue_windows(view: SlideView, tissue: TissueMap) -> list[npt.NDArray[np.uint8]]:
    """Windows of one size, distributed over the tissue of a slide; none where it has no tissue."""
    shows = tissue.tissue  # (h, w)
    places = np.argwhere(shows)  # (N, 2), row by row
    if not len(places):
        return []
    some = places[np.unique(np.linspace(0, len(places) - 1, _WINDOWS + 2).astype(int)[1:-1])]
    return [view.read(_window(y, view.height), _window(x, view.width)) for y, x in (some + 0.5) / shows.shape]


def _window(center: float, length: int) -> slice:
    """Window around a position, given as a fraction of the length, moved inside."""
    side = min(_SIDE, length)
    start = min(max(round(center * length - side / 2), 0), length - side)
    return slice(start, start + side)


def _score(reference: ReferenceDistribution, features: npt.NDArray[np.float64] | None) -> float | None:
    if features is None:
        return None
    score = float(reference.ood_score(features[None])[0])
    return score if np.isfinite(score) else None
