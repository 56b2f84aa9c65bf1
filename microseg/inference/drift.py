"""How far an image that is segmented lies from those that the model knows."""

import numpy as np
import numpy.typing as npt

from microseg.data.appearance import describe_image, describe_windows
from microseg.data.slides import SlideView, TissueMap
from microseg.metrics import KnownImages

__all__ = ["image_drift", "slide_drift"]

_WINDOWS, _SIDE = 8, 256  # of a slide: how many are looked at, and their side in pixels at the model's scale


def image_drift(known: KnownImages | None, image: npt.NDArray[np.uint8], zoom: float = 1.0) -> float | None:
    """Drift of an image: its distance to the nearest known lab, 1 being the limit; see `KnownImages.drift`.

    Args:
        known: what the model knows; None where that was not kept.
        image: RGB, (H, W, 3).
        zoom: factor by which it is enlarged to the model's scale.

    Returns:
        None where nothing is known, or where the image shows no tissue.
    """
    return None if known is None else _drift(known, describe_image(image, zoom))


def slide_drift(known: KnownImages | None, view: SlideView, tissue: TissueMap | None) -> float | None:
    """Drift of a slide, by a few windows spread over its tissue.

    Args:
        known: as for `image_drift`.
        view: the slide at the model's scale.
        tissue: where there is some; None: everywhere.
    """
    if known is None:
        return None
    shows = np.ones((_WINDOWS, _WINDOWS), np.bool_) if tissue is None else tissue.tissue  # (h, w)
    places = np.argwhere(shows)  # (N, 2), row by row
    if not len(places):
        return None
    some = places[np.unique(np.linspace(0, len(places) - 1, _WINDOWS + 2).astype(int)[1:-1])]
    windows = [view.read(_window(y, view.height), _window(x, view.width)) for y, x in (some + 0.5) / shows.shape]
    return _drift(known, describe_windows(windows))


def _window(centre: float, length: int) -> slice:
    """Around a place given as a share of the length, moved inside."""
    side = min(_SIDE, length)
    start = min(max(round(centre * length - side / 2), 0), length - side)
    return slice(start, start + side)


def _drift(known: KnownImages, figures: npt.NDArray[np.float64] | None) -> float | None:
    if figures is None:
        return None
    drift = float(known.drift(figures[None])[0])
    return drift if np.isfinite(drift) else None
