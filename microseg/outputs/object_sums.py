"""Sums over the pixels of objects, of which measurements are computed; those of parts of an image can be added."""

import numpy as np
import numpy.typing as npt

from microseg.outputs.runs import Runs, find_runs, pad_labels

__all__ = ["SUMS", "ObjectSums", "Weights", "sum_objects"]

SUMS = ("area", "x", "y", "xx", "yy", "xy", "perimeter", "confidence")
"""Columns of `ObjectSums`: pixels, their coordinates and products, length of the border, confidence."""
ObjectSums = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

_PERIMETER = SUMS.index("perimeter")
_PIXELS = 2**18  # pixels of an image whose objects are summed at once


def sum_objects(
    labels: npt.NDArray[np.int32],
    count: int,
    confidence: Weights,
    *,
    rows: slice = slice(None),
    top: int = 0,
    runs: Runs | None = None,
) -> ObjectSums:
    """Sum over the pixels of each object; measurements are computed from these. Sums of parts can be added.

    Args:
        labels: From `label_objects`; some rows of an image.
        count: Number of objects.
        confidence: Probability of each pixel's class, in any unit.
        rows: Rows to sum; the others are context for the perimeters, which depend on two pixels around.
        top: Index of the first row of ``labels`` in the image.
        runs: Runs of these rows, where they are known already.

    Shape:
        labels (h, W), confidence (h, W) → (count, len(SUMS))
    """
    sums = np.zeros((count, len(SUMS)), np.float64)
    first, last, _ = rows.indices(len(labels))
    if runs is not None:
        sums += _sum_runs(runs, count, confidence[rows], top + first)
    step = max(1, _PIXELS // labels.shape[1])
    for start in range(first, last, step):
        stop = min(last, start + step)
        if runs is None:
            sums += _sum_runs(find_runs(labels[start:stop]), count, confidence[start:stop], top + start)
        around = slice(max(0, start - 2), min(len(labels), stop + 2))
        of = slice(start - around.start, stop - around.start)
        sums[:, _PERIMETER] += _perimeters(labels[around], count, of)
    return sums


def _sum_runs(runs: Runs, count: int, confidence: Weights, top: int) -> ObjectSums:
    of = np.flatnonzero(runs.labels)
    number = runs.labels[of] - 1  # object of each run
    pixels, x, y = runs.lengths[of].astype(np.float64), runs.columns[of].astype(np.float64), runs.rows[of] + float(top)
    end = x + pixels
    across = pixels * (x + end - 1) / 2
    squares = (end - 1) * end * (2 * end - 1) / 6 - (x - 1) * x * (2 * x - 1) / 6
    kind = np.int64 if confidence.dtype == np.uint8 else np.float64
    certain = np.add.reduceat(np.ascontiguousarray(confidence).ravel(), runs.starts, dtype=kind)[of]
    sums = np.empty((count, len(SUMS)), np.float64)
    columns = (pixels, across, y * pixels, squares, y * y * pixels, y * across, None, certain)
    for column, values in enumerate(columns):
        sums[:, column] = 0 if values is None else np.bincount(number, values, minlength=count)
    return sums


def _perimeters(labels: npt.NDArray[np.int32], count: int, rows: slice) -> npt.NDArray[np.float64]:
    """Length of each object's border in some rows: border pixels, weighted by the number and position of neighbors."""
    width = labels.shape[1] + 2
    flat = pad_labels(labels).ravel()
    across, down = flat[1:] == flat[:-1], flat[width:] == flat[:-width]
    border = np.zeros(len(flat), np.bool_)  # pixels of an object that have a neighbor of another label
    np.logical_and(down[:-width], down[width:], out=border[width:-width])
    border[1:-1] &= across[:-1] & across[1:]
    np.greater(flat > 0, border, out=border)
    first, last, _ = rows.indices(len(labels))
    where = np.flatnonzero(border[(first + 1) * width : (last + 1) * width]) + (first + 1) * width
    own = flat[where]

    def neighbors(steps: tuple[int, ...]) -> npt.NDArray[np.int64]:
        found = np.zeros(len(where), np.int64)
        for step in steps:
            found += border[where + step] & (flat[where + step] == own)
        return found

    beside = neighbors((1, -1, width, -width))
    across_corners = neighbors((width + 1, width - 1, 1 - width, -width - 1))
    code = 1 + 2 * beside + 10 * across_corners
    length = np.zeros(50)
    length[[5, 7, 15, 17, 25, 27]] = 1
    length[[21, 33]] = np.sqrt(2)
    length[[13, 23]] = (1 + np.sqrt(2)) / 2
    return np.asarray(np.bincount(own - 1, length[code], minlength=count), np.float64)
