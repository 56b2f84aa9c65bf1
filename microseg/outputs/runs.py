"""Runs: stretches of a row whose pixels have one label. An image has a hundredth as many of them as of pixels.

Objects are found, numbered and summed by their runs, so that no step takes time for each pixel but the search for the
runs themselves.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Runs", "find_runs", "label_runs", "pad_labels"]

_IGNORE = 255  # of masks

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Runs:
    """Runs of an image, row by row.

    Attributes:
        starts: Position of the first pixel of each run, counted row by row.
        lengths: Number of its pixels.
        labels: Label of its pixels.
        shape: Height and width of the image.

    Shape:
        starts, lengths and labels (R,)
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    labels: npt.NDArray[np.integer]
    shape: tuple[int, int]

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Row of each run."""
        return self.starts // self.shape[1]

    @cached_property
    def columns(self) -> npt.NDArray[np.int64]:
        """Column of the first pixel of each run."""
        return self.starts - self.rows * self.shape[1]

    def paint(self, labels: npt.NDArray[np.integer]) -> Labels:
        """An image of labels, one for each run: (R,) → (H, W)."""
        return np.repeat(labels.astype(np.int32), self.lengths).reshape(self.shape)


def find_runs(image: npt.NDArray[np.integer]) -> Runs:
    """Find the runs of an image of labels, (H, W); the background is one of the labels."""
    height, width = image.shape
    flat = np.ascontiguousarray(image).ravel()
    begins = np.empty(flat.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    starts = np.flatnonzero(begins)
    return Runs(starts, np.diff(starts, append=flat.size), flat[starts], (height, width))


def label_runs(runs: Runs, *, ignored: int | None = _IGNORE) -> npt.NDArray[np.int64]:
    """Number the connected regions of equal labels, as `label_objects` does: by the number of each run.

    Args:
        runs: Of a mask or of labels; 0 is no region.
        ignored: Another label that is none; None for labels that have no such.

    Shape:
        (R,)

    Returns:
        Numbers from 1 in the order of the regions' first pixels; 0 for runs of no region.
    """
    classes = runs.labels if ignored is None else np.where(runs.labels == ignored, 0, runs.labels)
    chosen = np.flatnonzero(classes)
    if not len(chosen):
        return np.zeros(len(classes), np.int64)
    starts, ends, kinds = runs.starts[chosen], (runs.starts + runs.lengths)[chosen], classes[chosen]
    # runs of the row above that share a column: those that end after this one begins, and begin before it ends
    width = runs.shape[1]
    first = np.searchsorted(ends, starts - width, side="right")
    last = np.searchsorted(starts, ends - width, side="left")
    counts = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(chosen)), counts)
    above = np.arange(len(below)) - np.repeat(counts.cumsum() - counts, counts) + first[below]
    same = kinds[above] == kinds[below]
    above, ends_of_rows = above[same], np.bincount(below[same], minlength=len(chosen)).cumsum()
    starts_of_rows = np.concatenate([[0], ends_of_rows])
    links = csr_array((np.ones(len(above)), above, starts_of_rows), shape=(len(chosen),) * 2)
    count, components = connected_components(links, connection="weak")
    firsts = np.full(count, len(chosen))
    np.minimum.at(firsts, components, np.arange(len(chosen)))
    numbers = np.empty(count, np.int64)
    numbers[firsts.argsort()] = np.arange(1, count + 1)
    labels = np.zeros(len(classes), np.int64)
    labels[chosen] = numbers[components]
    return labels


def pad_labels(labels: Labels) -> npt.NDArray[np.integer]:
    """Labels with a margin of one pixel of 0; in 16 bits where these hold them: half of the memory to go through."""
    small = labels.max(initial=0) <= np.iinfo(np.uint16).max
    padded = np.zeros((labels.shape[0] + 2, labels.shape[1] + 2), np.uint16 if small else labels.dtype)
    padded[1:-1, 1:-1] = labels
    return padded
