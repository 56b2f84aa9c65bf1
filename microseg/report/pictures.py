"""Pictures of a target lab with the masks of two models, as the decision page shows them: at the image's own pixels."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json

from microseg.datasets.sampling import evenly_spaced
from microseg.evaluation.criteria import prediction_entropy
from microseg.evaluation.label_free import TargetImage
from microseg.inference.engine import Engine
from microseg.models.separation import class_mask
from microseg.slides.region import read_source

__all__ = ["Picture", "draw_pictures", "pictures_from_json", "pictures_to_json", "select_targets"]

_SIDE = 768  # pixels of a picture; of a larger image, the part where the models differ most
_BLOCK = 16  # pixels by which that part is moved
_TOTAL_BYTES = 9_000_000  # of all pictures; 12 MB in base64
_QUALITIES = (82, 60, 35, 15)  # of WebP; the first with which they fit
_UNCERTAIN = 0.75  # share of the pictures that are the most uncertain ones

_DataUri = Annotated[str, Field(pattern=r"^data:image/(webp|png);base64,[A-Za-z0-9+/]+=*$")]


class Picture(BaseModel):
    """A part of an image, in its own pixels, and the masks of both models.

    Attributes:
        name: Name of the image.
        image: The pixels, as WebP.
        candidate: Class indices of the candidate's mask, as a gray PNG of the same size.
        production: The same of the model in production; None if there is none.
        left: Left edge of the part in the image, in pixels.
        top: Upper edge of the part in the image, in pixels.
        width: Width of the part in pixels.
        height: Height of the part in pixels.
        full_width: Width of the image in pixels.
        full_height: Height of the image in pixels.
        mpp: Microns per pixel; None if unknown.
        uncertainty: Mean entropy of the candidate's predictions in the whole image, 0..1.
        changed: Fraction of the image's pixels to which the models give different classes; None without production.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    image: _DataUri
    candidate: _DataUri
    production: _DataUri | None
    left: int
    top: int
    width: int
    height: int
    full_width: int
    full_height: int
    mpp: float | None
    uncertainty: float
    changed: float | None


@dataclass(frozen=True)
class _Part:
    """A picture that is not encoded yet."""

    pixels: npt.NDArray[np.uint8]  # (h, w, 3)
    values: Mapping[str, Any]  # the other values of the picture


def select_targets(
    targets: Sequence[TargetImage], uncertainty: Mapping[str, float], limit: int
) -> tuple[TargetImage, ...]:
    """Select images to look at: mostly the most uncertain ones, and some spread evenly over the others.

    Args:
        targets: Images of the target lab.
        uncertainty: Mean entropy of the candidate's predictions, by the name of the image. Images without one are
            selected evenly.
        limit: Largest number of images.

    Returns:
        The most uncertain image first.
    """
    ranked = sorted(targets, key=lambda target: -uncertainty.get(target.name, -1.0))
    known = sum(target.name in uncertainty for target in targets)
    first = min(known, round(_UNCERTAIN * limit)) if len(ranked) > limit else 0
    return (*ranked[:first], *evenly_spaced(ranked[first:], limit - first))


def draw_pictures(
    candidate: Engine, production: Engine | None, targets: Sequence[TargetImage], *, total_bytes: int = _TOTAL_BYTES
) -> list[Picture]:
    """Segment images with both models.

    Args:
        candidate: Engine of the candidate.
        production: Engine of the model in production; None if there is none.
        targets: The images.
        total_bytes: Largest size of all pictures together; the images lose quality, and the last ones are left out,
            where they would be larger.

    Returns:
        The pictures, the most uncertain first.
    """
    parts = sorted(
        (_part(candidate, production, target) for target in targets),
        key=lambda part: -part.values["uncertainty"],
    )
    for quality in _QUALITIES:
        pictures = [Picture(image=_webp(part.pixels, quality), **part.values) for part in parts]
        sizes = np.cumsum([len(it.image) + len(it.candidate) + len(it.production or "") for it in pictures])
        if not parts or sizes[-1] <= total_bytes * 4 / 3:
            return pictures
    return pictures[: int((sizes <= total_bytes * 4 / 3).sum())]


def pictures_to_json(pictures: Sequence[Picture]) -> str:
    """Convert pictures to JSON."""
    return to_json(pictures).decode()


def pictures_from_json(text: str | bytes) -> list[Picture]:
    """Restore from `pictures_to_json`.

    Raises:
        ValueError: They are not such pictures.
    """
    return TypeAdapter(list[Picture]).validate_json(text)


def _part(candidate: Engine, production: Engine | None, target: TargetImage) -> _Part:
    pixels = read_source(target.image)
    probabilities = candidate.probabilities(pixels, target.mpp)
    new = class_mask(probabilities)
    old = None if production is None else class_mask(production.probabilities(pixels, target.mpp))
    differs = probabilities.max(0) < 0.8 if old is None else new != old  # (H, W)
    top, left = _densest_window(differs)
    window = slice(top, top + _SIDE), slice(left, left + _SIDE)
    height, width = pixels.shape[:2]
    return _Part(
        np.ascontiguousarray(pixels[window]),
        {
            "name": target.name,
            "candidate": _png(new[window]),
            "production": None if old is None else _png(old[window]),
            "left": left,
            "top": top,
            "width": min(_SIDE, width),
            "height": min(_SIDE, height),
            "full_width": width,
            "full_height": height,
            "mpp": target.mpp,
            "uncertainty": prediction_entropy(probabilities),
            "changed": None if old is None else float(differs.mean()),
        },
    )


def _densest_window(marked: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Upper and left edge of the window with the most marked pixels; the middle one if all have the same number."""
    edges = [sorted({*range(0, max(1, n - _SIDE), _BLOCK), max(0, n - _SIDE)}) for n in marked.shape]
    sums = np.pad(marked.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # (H + 1, W + 1)
    y, x = (np.array(edge) for edge in edges)
    y_end, x_end = np.minimum(y + _SIDE, marked.shape[0]), np.minimum(x + _SIDE, marked.shape[1])
    counts = sums[np.ix_(y_end, x_end)] - sums[np.ix_(y, x_end)] - sums[np.ix_(y_end, x)] + sums[np.ix_(y, x)]
    best = np.argwhere(counts == counts.max())
    row, column = best[len(best) // 2]
    return edges[0][row], edges[1][column]


def _webp(pixels: npt.NDArray[np.uint8], quality: int) -> str:
    return _data_uri(Image.fromarray(pixels), "webp", quality=quality, method=4)


def _png(mask: npt.NDArray[np.uint8]) -> str:
    return _data_uri(Image.fromarray(np.ascontiguousarray(mask)), "png", optimize=True)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
