"""Polygons of regions of pixels."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from microseg.outputs.runs import Runs, find_runs, label_runs, pad_labels

__all__ = ["outline_regions", "union_polygons"]

Polygons = npt.NDArray[np.object_]


def outline_regions(
    labels: npt.NDArray[np.int32], top: int, *, connected: bool = False, runs: Runs | None = None
) -> tuple[npt.NDArray[np.int64], Polygons]:
    """Outline each connected region of labels; regions of one label that only touch at a corner are two.

    Each side of a pixel whose neighbor belongs to another region is an edge, with the region to its right. Of two edges
    that begin where it ends, the next one is that to the left: where a region touches itself at a corner, it has a hole
    that touches its outer ring, and no ring touches itself.

    Args:
        labels: Label of each pixel; 0 is not outlined.
        top: Number of the first row.
        connected: Whether each label is known to be one region.
        runs: Runs of the labels, where they are known already.

    Shape:
        (h, w) → (N,), (N,)

    Returns:
        Label and polygon of each region, in the order of their first pixels. Polygons follow the edges of pixels, with
        holes; outer rings are anticlockwise, as RFC 7946 requires.
    """
    runs = find_runs(labels) if runs is None else runs
    regions = labels if connected else runs.paint(label_runs(runs, ignored=None))
    width = labels.shape[1] + 2
    flat = pad_labels(regions).ravel()
    sides = _sides(flat, width, runs)
    if not len(sides[0]):
        return np.zeros(0, np.int64), np.zeros(0, np.object_)
    pixels, directions = np.concatenate(sides), np.repeat(np.arange(4), [len(side) for side in sides])
    rows, columns = np.divmod(pixels, width)
    following = _next_edges(flat, pixels, directions, width)
    ordered, lengths = _follow(following, (rows + columns + directions) % 2 == 0, len(sides[0]))
    pixels, directions, rows, columns = (values[ordered] for values in (pixels, directions, rows, columns))
    starts = lengths.cumsum() - lengths
    before = np.empty_like(directions)  # direction of the edge before, in the same ring
    before[1:] = directions[:-1]
    before[starts] = directions[starts + lengths - 1]
    corners = directions != before
    direction = directions[corners]
    x = columns[corners] - 1 + ((direction == 1) | (direction == 2))  # where the edge begins
    y = rows[corners] - 1 + ((direction == 2) | (direction == 3))
    rings = np.repeat(np.arange(len(lengths)), lengths)[corners]
    firsts = np.searchsorted(rings, np.arange(len(lengths)))
    counts = np.diff(firsts, append=len(rings))
    place = y * width + x
    begin = np.flatnonzero(place == np.repeat(np.minimum.reduceat(place, firsts), counts)) - firsts
    turned = np.repeat(firsts, counts) + (np.arange(len(rings)) + np.repeat(begin - firsts, counts)) % np.repeat(
        counts, counts
    )
    x, y = x[turned], y[turned]  # each ring begins with its first corner, row by row
    after = np.arange(1, len(rings) + 1)
    after[firsts + counts - 1] = firsts
    outer = np.add.reduceat(x * y[after] - x[after] * y, firsts) > 0
    of = flat[pixels[starts]]  # region of each ring
    owner = np.zeros(int(of.max()) + 1, np.int64)
    owner[of[outer]] = np.arange(int(outer.sum()))
    order = np.lexsort((~outer, owner[of]))  # the outer ring of each region first
    lines = shapely.linearrings(np.stack([x, y + top], axis=1).astype(np.float64), indices=rings)
    names = labels[rows[starts][outer] - 1, columns[starts][outer] - 1]
    return names.astype(np.int64), shapely.polygons(lines[order], indices=owner[of][order])


def _sides(flat: npt.NDArray[np.integer], width: int, runs: Runs) -> list[npt.NDArray[np.int64]]:
    """Pixels with an edge above, to the right, below, and to the left, in rows with a margin of one pixel."""
    down, inside, region = flat[width:] != flat[:-width], flat > 0, np.flatnonzero(runs.labels)
    begins = ((runs.rows + 1) * width + runs.columns + 1)[region]
    return [
        np.flatnonzero(down & inside[width:]) + width,
        begins + runs.lengths[region] - 1,
        np.flatnonzero(down & inside[:-width]),
        begins,
    ]


def _next_edges(
    flat: npt.NDArray[np.integer], pixels: npt.NDArray[np.int64], directions: npt.NDArray[np.int64], width: int
) -> npt.NDArray[np.int64]:
    """Number of the edge after each edge, which has a pixel and a side of it: above, right, below or left."""
    ahead = np.array((1, width, -1, -width))[directions]
    aside = np.array((1 - width, width + 1, width - 1, -width - 1))[directions]
    label = flat[pixels]
    straight, left = flat[pixels + ahead] == label, flat[pixels + aside] == label
    step = np.where(left, aside, ahead * straight)  # to the right: an edge of the same pixel
    side = (directions + np.where(left, 3, ~straight)) % 4
    numbers = np.empty(4 * len(flat), np.int32)  # of the edge on each side of each pixel that has one
    numbers[directions * len(flat) + pixels] = np.arange(len(pixels))
    return np.asarray(numbers[side * len(flat) + pixels + step], np.int64)


def _follow(
    following: npt.NDArray[np.int64], even: npt.NDArray[np.bool_], starts: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Edges ring after ring, and the number of edges of each ring.

    Edges begin at even and at odd places in turn, so that only every second one has to be looked at.

    Args:
        following: Number of the edge after each edge.
        even: Whether an edge begins at an even place.
        starts: Each ring has one of the first edges, of this number.
    """
    edges = np.flatnonzero(even)
    number = np.empty(len(following), np.int32)  # of each even edge among them
    number[edges] = np.arange(len(edges), dtype=np.int32)
    after = number[following[following[edges]]]
    count, ring = connected_components(_links(after), connection="weak")
    begins = number[np.where(even[:starts], np.arange(starts), following[:starts])]
    first = np.full(count, starts)  # the first of the first edges of each ring
    np.minimum.at(first, ring[begins], np.arange(starts))
    order = first.argsort()
    entries = begins[first[order]]
    before = np.empty_like(after)
    before[after] = np.arange(len(after), dtype=np.int32)
    after[before[entries]] = np.roll(entries, -1)  # from the end of each ring to the next one: one ring of all
    chain = depth_first_order(_links(after), entries[0], return_predecessors=False)
    every_second = edges[chain]
    lengths = 2 * np.bincount(ring, minlength=count)[order]
    return np.stack([every_second, following[every_second]], axis=1).ravel(), lengths


def _links(after: npt.NDArray[np.int32]) -> csr_array:
    """A graph in which each node has one link."""
    count = len(after)
    return csr_array((np.ones(count), after, np.arange(count + 1, dtype=np.int32)), shape=(count, count))


def union_polygons(groups: Sequence[Sequence[shapely.Polygon]]) -> list[list[shapely.Polygon]]:
    """Join the polygons of each group, which share edges; one for each connected region of it.

    Points at which the result does not turn, as on the ends of the shared edges, are left out.
    """
    joined = [list(group) for group in groups]
    of_size: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        if len(group) > 1:
            of_size[len(group)].append(number)
            joined[number] = []
    for numbers in of_size.values():  # together, in compiled code
        unions = shapely.union_all(np.array([groups[number] for number in numbers], np.object_), axis=1)
        regions, of = shapely.get_parts(unions, return_index=True)
        for number, polygon in zip(of.tolist(), _without_straight_points(regions).tolist(), strict=True):
            joined[numbers[number]].append(polygon)
    return joined


def _without_straight_points(polygons: Polygons) -> Polygons:
    """Polygons, (N,), without the points at which their rings do not turn; outer rings are anticlockwise."""
    rings, of_polygons = shapely.get_rings(polygons, return_index=True)
    points, of_rings = shapely.get_coordinates(rings, return_index=True)
    opened = np.diff(of_rings, append=-1) == 0  # the last point of a ring is its first one
    points, of_rings = points[opened], of_rings[opened]
    ends = np.bincount(of_rings).cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    previous, following = np.arange(-1, len(points) - 1), np.arange(1, len(points) + 1)
    previous[starts], following[ends - 1] = ends - 1, starts
    before, after = points - points[previous], points[following] - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    lines = shapely.linearrings(points[turns], indices=of_rings[turns])
    turned: Polygons = shapely.orient_polygons(shapely.polygons(lines, indices=of_polygons))
    return turned
