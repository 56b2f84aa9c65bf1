"""How far an image that is segmented lies from those that the model knows."""

import numpy as np
import numpy.typing as npt

from microseg.datasets.appearance import image_features, window_features
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.slides.slide import SlideView
from microseg.slides.tissue import TissueMap

__all__ = ["image_ood_score", "slide_ood_score"]

_WINDOWS, _SIDE = 8, 256  # of a slide: how many are looked at, and their side in pixels at the model's scale


def image_ood_score(
    reference: ReferenceDistribution | None, image: npt.NDArray[np.uint8], zoom: float = 1.0
) -> float | None:
    """Drift of an image: its distance to the nearest known lab, 1 being the limit; see `ReferenceDistribution.drift`.

    Args:
        reference: what the model knows; None where that was not kept.
        image: RGB, (H, W, 3).
        zoom: factor by which it is enlarged to the model's scale.

    Returns:
        None where nothing is known, or where the image shows no tissue.
    """
    return None if reference is None else _drift(reference, image_features(image, zoom))


def slide_ood_score(reference: ReferenceDistribution | None, view: SlideView, tissue: TissueMap | None) -> float | None:
    """Drift of a slide, by a few windows spread over its tissue.

    Args:
        reference: as for `image_ood_score`.
        view: the slide at the model's scale.
        tissue: where there is some; None: everywhere.
    """
    if reference is None:
        return None
    shows = np.ones((_WINDOWS, _WINDOWS), np.bool_) if tissue is None else tissue.tissue  # (h, w)
    places = np.argwhere(shows)  # (N, 2), row by row
    if not len(places):
        return None
    some = places[np.unique(np.linspace(0, len(places) - 1, _WINDOWS + 2).astype(int)[1:-1])]
    windows = [view.read(_window(y, view.height), _window(x, view.width)) for y, x in (some + 0.5) / shows.shape]
    return _drift(reference, window_features(windows))


def _window(center: float, length: int) -> slice:
    """Around a place given as a share of the length, moved inside."""
    side = min(_SIDE, length)
    start = min(max(round(center * length - side / 2), 0), length - side)
    return slice(start, start + side)


def _drift(reference: ReferenceDistribution, figures: npt.NDArray[np.float64] | None) -> float | None:
    if figures is None:
        return None
    ood_score = float(reference.ood_score(figures[None])[0])
    return ood_score if np.isfinite(ood_score) else None
