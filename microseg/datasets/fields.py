"""Fields: the regions of a slide that networks are trained on, adapted to and evaluated on.

Fields without labels are chosen from the tissue, spread over its appearance (clusters of stain), without marker pen and
places out of focus, and are the same again for the same slide, recipe and seed. Fields with labels cover the annotated
regions.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from microseg.datasets.stain import optical_density
from microseg.slides.artifacts import FOCUS_MPP, is_out_of_focus, pen_map
from microseg.slides.slide import Slide
from microseg.slides.tissue import THUMBNAIL_SIDE, TissueMap, tissue_map

__all__ = ["Box", "Field", "FieldRecipe", "FoundFields", "choose_fields", "labelled_fields", "spread"]

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge, in pixels of a slide's finest level."""

_SIDES = (256, 2048)  # smallest and largest side of a field, in pixels of the finest level
_FOCUS_SIDE = 256  # pixels of the place whose focus is measured
_TISSUE_SHARES = (0.5, 0.25, 0.02)  # of a field; the next lower one where there are too few
_ENOUGH = 8  # fields
_MOST_PEN = 0.01  # of a field
_CLUSTERS = 6
_TRIED = 2  # places looked at for a field that is kept, at most


@dataclass(frozen=True)
class FieldRecipe:
    """How the fields of a slide are chosen; versioned with the dataset.

    Attributes:
        fields: Number of fields without labels of a slide, at most.
        microns: Side of a field.
        seed: Seed of their choice.
    """

    fields: int = 32
    microns: float = 512.0
    seed: int = 0

    def side(self, mpp: float) -> int:
        """Side of a field in pixels of a slide's finest level."""
        return int(np.clip(round(self.microns / mpp), *_SIDES))


@dataclass(frozen=True)
class Field:
    """A field of a slide.

    Attributes:
        box: Where it is.
        cluster: Number of its cluster of appearance in the slide.
    """

    box: Box
    cluster: int = 0


@dataclass(frozen=True)
class FoundFields:
    """Fields of a slide, and what was measured to find them.

    Attributes:
        fields: The fields.
        tissue: Fraction of the slide that is tissue.
        pen: Fraction of the tissue that is marker pen.
        out_of_focus: Fraction of the places looked at that are out of focus.
        map: Where the slide shows tissue.
    """

    fields: tuple[Field, ...]
    tissue: float
    pen: float
    out_of_focus: float
    map: TissueMap


def choose_fields(slide: Slide, mpp: float, recipe: FieldRecipe) -> FoundFields:
    """Choose fields of a slide without looking at labels.

    Args:
        slide: The slide.
        mpp: Microns per pixel of its finest level.
        recipe: How they are chosen.

    Raises:
        ImageReadError: The slide cannot be read where it was looked at.
    """
    thumbnail = slide.thumbnail(THUMBNAIL_SIDE)  # (h, w, 3)
    shows = tissue_map(thumbnail)
    tissue = shows.tissue  # (h, w)
    pen = pen_map(thumbnail, tissue, mpp * slide.width / thumbnail.shape[1])
    side = min(recipe.side(mpp), slide.width, slide.height)
    rng = np.random.default_rng((recipe.seed, slide.width, slide.height))
    boxes = _grid(slide.width, slide.height, side, rng)
    scale = thumbnail.shape[1] / slide.width, thumbnail.shape[0] / slide.height
    shares = np.array([(_cut(tissue, box, scale).mean(), _cut(pen, box, scale).mean()) for box in boxes])  # (N, 2)
    clean = shares[:, 1] <= _MOST_PEN
    for least in _TISSUE_SHARES:
        usable = np.flatnonzero(clean & (shares[:, 0] >= least))
        if len(usable) >= _ENOUGH:
            break
    clusters = _clusters([_appearance(thumbnail, tissue, boxes[index], scale) for index in usable], recipe.seed)
    kept: list[Field] = []
    looked_at = blurred = 0
    for position in spread([("", int(cluster)) for cluster in clusters], recipe.seed):
        if len(kept) >= recipe.fields or looked_at >= _TRIED * recipe.fields:
            break
        box = boxes[usable[position]]
        looked_at += 1
        if is_out_of_focus(_center(slide, box, mpp)):
            blurred += 1
        else:
            kept.append(Field(box, int(clusters[position])))
    kept.sort(key=lambda field: (field.box[1], field.box[0]))
    tissue_pixels = max(1, int(tissue.sum()))
    share = float((pen & tissue).sum() / tissue_pixels)
    return FoundFields(tuple(kept), shows.fraction, share, blurred / max(1, looked_at), shows)


def labelled_fields(regions: Iterable[Box], width: int, height: int, side: int) -> Iterator[tuple[Field, Box]]:
    """Cover annotated regions with fields.

    A large region is cut into parts. A small one gets a field of the usual side around it, so that there is something
    to see around it.

    Args:
        regions: The bounding boxes of the annotated regions.
        width: Of the slide.
        height: Of the slide.
        side: Usual side of a field.

    Yields:
        A field, and the part of the region that it is for.
    """
    for left, top, right, bottom in regions:
        left, top, right, bottom = max(0, left), max(0, top), min(width, right), min(height, bottom)
        if right <= left or bottom <= top:
            continue
        for x, x_end in _parts(left, right, side):
            for y, y_end in _parts(top, bottom, side):
                across, down = _widened(x, x_end, side, width), _widened(y, y_end, side, height)
                yield Field((across[0], down[0], across[1], down[1])), (x, y, x_end, y_end)


def spread(places: Sequence[tuple[str, int]], seed: int) -> list[int]:
    """Order fields so that the first ones, however many are used, are spread over slides and over appearance.

    Args:
        places: Slide and cluster of each field.
        seed: Seed of the order among equals.

    Returns:
        Their positions.
    """
    order = np.random.default_rng((seed, 4)).permutation(len(places)).tolist()
    in_cluster: dict[tuple[str, int], int] = {}
    ranks = {}
    for index in order:
        ranks[index] = in_cluster[places[index]] = in_cluster.get(places[index], -1) + 1
    in_slide: dict[str, int] = {}
    rounds = {}
    for index in sorted(order, key=lambda index: ranks[index]):
        slide = places[index][0]
        rounds[index] = in_slide[slide] = in_slide.get(slide, -1) + 1
    return sorted(order, key=lambda index: rounds[index])


def _grid(width: int, height: int, side: int, rng: np.random.Generator) -> list[Box]:
    """Fields side by side; the grid begins at a random place."""
    lefts, tops = (
        range(int(rng.integers((length - side) % side + 1)), length - side + 1, side) for length in (width, height)
    )
    return [(left, top, left + side, top + side) for top in tops for left in lefts]


def _cut(array: npt.NDArray[np.generic], box: Box, scale: tuple[float, float]) -> npt.NDArray[np.generic]:
    """The part of a thumbnail that shows a field."""
    left, top, right, bottom = box
    columns = slice(int(left * scale[0]), max(int(left * scale[0]) + 1, math.ceil(right * scale[0])))
    rows = slice(int(top * scale[1]), max(int(top * scale[1]) + 1, math.ceil(bottom * scale[1])))
    return array[rows, columns]


def _appearance(
    thumbnail: npt.NDArray[np.uint8], tissue: npt.NDArray[np.bool_], box: Box, scale: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Mean and deviation of the optical density of a field's tissue, (6,)."""
    pixels = _cut(thumbnail, box, scale)[_cut(tissue, box, scale).astype(bool)]  # (n, 3)
    density = optical_density(pixels.astype(np.uint8))
    return np.concatenate([density.mean(0), density.std(0)])


def _clusters(features: Sequence[npt.NDArray[np.float32]], seed: int) -> npt.NDArray[np.intp]:
    """Cluster of each field, (N,)."""
    from scipy.cluster.vq import ClusterError, kmeans2  # half a second, and many commands need no clusters

    count = min(_CLUSTERS, len(features) // 2)
    if count < 2:
        return np.zeros(len(features), np.intp)
    points = np.asarray(features, np.float64)
    points = (points - points.mean(0)) / (points.std(0) + 1e-3)
    try:
        return np.asarray(kmeans2(points, count, minit="++", rng=np.random.default_rng(seed))[1], np.intp)
    except ClusterError:
        return np.zeros(len(features), np.intp)


def _center(slide: Slide, box: Box, mpp: float) -> npt.NDArray[np.uint8]:
    """The center of a field, at the scale at which focus is measured."""
    zoom = min(1.0, mpp / FOCUS_MPP)
    side = min(float(box[2] - box[0]), float(box[3] - box[1]), _FOCUS_SIDE / zoom)
    x, y = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2
    pixels = max(1, round(side * zoom))
    return slide.read_part((x, y, side, side), (pixels, pixels))


def _parts(start: int, stop: int, side: int) -> list[tuple[int, int]]:
    """Equal parts of a span, none longer than a field may be."""
    count = math.ceil((stop - start) / max(side, _SIDES[1]))
    edges = np.linspace(start, stop, count + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def _widened(start: int, stop: int, side: int, length: int) -> tuple[int, int]:
    """The span, with what is around it up to the side of a field, inside the slide."""
    missing = max(0, side - (stop - start))
    first = max(0, min(start - missing // 2, length - max(side, stop - start)))
    return first, min(length, max(stop, first + side))
