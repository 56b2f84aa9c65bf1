"""Object metrics: how well single objects (glands, nuclei) are found, instead of pixels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from skimage.metrics import contingency_table

from microseg.errors import DataError

__all__ = ["ObjectOverlap"]

Labels = npt.NDArray[np.integer]


@dataclass(frozen=True)
class ObjectOverlap:
    """The overlap of P predicted with R reference objects; see `between`.

    Args:
        overlap: Pixels that a predicted and a reference object share, sparse (P, R).
        predicted: Areas of the predicted objects in pixels, (P,).
        reference: Areas of the reference objects in pixels, (R,).
    """

    overlap: sparse.csr_array
    predicted: npt.NDArray[np.float64]
    reference: npt.NDArray[np.float64]

    @classmethod
    def between(cls, prediction: Labels, reference: Labels) -> "ObjectOverlap":
        """Count the overlap of two label images.

        Args:
            prediction: Label image: 0 is background, each other number one object; see `label_objects`.
            reference: Label image.

        Shape:
            (H, W) each

        Raises:
            DataError: The sizes differ, or a label is negative.
        """
        if prediction.shape != reference.shape:
            raise DataError(f"Expected label images of one size, got {prediction.shape} and {reference.shape}.")
        lowest = min(int(labels.min(initial=0)) for labels in (prediction, reference))
        if lowest < 0:
            raise DataError(f"Expected labels of 0 (background) or more, got {lowest}: number the objects from 1.")
        table = sparse.csr_array(contingency_table(prediction, reference))  # type: ignore[no-untyped-call]
        rows, columns = table.sum(1)[1:], table.sum(0)[1:]  # areas by label
        ours, theirs = np.flatnonzero(rows), np.flatnonzero(columns)
        return cls(table[1:, 1:][ours][:, theirs], rows[ours], columns[theirs])

    def f1(self) -> float:
        """Return the F1 score of detection.

        A predicted object is correct if it covers at least half of the reference object that it shares most pixels
        with; each reference object is counted once.

        Returns:
            0..1; NaN if there are no objects at all.

        Reference:
            Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", Medical
            Image Analysis 2017.
        """
        total = len(self.predicted) + len(self.reference)
        if not total:
            return float("nan")
        partners, shared = _partners(self.overlap)
        found = np.unique(partners[(shared > 0) & (2 * shared >= _take(self.reference, partners))])
        return 2 * len(found) / total

    def dice(self) -> float:
        """Return the Dice of each object with the one it shares most pixels with, weighted by area.

        Returns:
            The mean of both directions, 0..1; NaN if there are no objects at all, 0 if only one image has objects.

        Reference:
            Sirinukunwattana et al., Medical Image Analysis 2017.
        """
        if not len(self.predicted) and not len(self.reference):
            return float("nan")
        forward = _directed_dice(self.overlap, self.predicted, self.reference)
        backward = _directed_dice(sparse.csr_array(self.overlap.T), self.reference, self.predicted)
        return (forward + backward) / 2

    def aggregated_jaccard(self) -> float:
        """Return the aggregated Jaccard index (AJI).

        The summed intersections over the summed unions of each reference object and the predicted object with the
        highest intersection over union. Objects without a partner are added to the unions.

        Returns:
            0..1; NaN if there are no objects at all.

        Reference:
            Kumar et al., "A dataset and a technique for generalized nuclear segmentation", IEEE TMI 2017.
        """
        if not len(self.predicted) and not len(self.reference):
            return float("nan")
        pairs = self.overlap.tocoo()
        iou = sparse.csr_array(
            (pairs.data / (self.predicted[pairs.row] + self.reference[pairs.col] - pairs.data), (pairs.col, pairs.row)),
            shape=(len(self.reference), len(self.predicted)),
        )
        partners, best = _partners(iou)
        matched = np.flatnonzero(best > 0)
        used = partners[matched]
        intersection = float(np.asarray(self.overlap[used, matched]).sum()) if len(matched) else 0.0
        union = float(self.predicted[used].sum()) - intersection + float(self.reference.sum())
        union += float(np.delete(self.predicted, used).sum())
        return intersection / union


def _partners(table: sparse.csr_array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """For each row the column of the largest value, and that value; 0 where a row is empty."""
    rows, columns = table.shape
    if not rows or not columns:
        return np.zeros(rows, np.intp), np.zeros(rows)
    return np.asarray(table.argmax(1)).ravel(), table.max(1).toarray().ravel()


def _take(values: npt.NDArray[np.float64], indices: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    return values[indices] if len(values) else np.zeros(len(indices))


def _directed_dice(overlap: sparse.csr_array, ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> float:
    if not len(ours):
        return 0.0
    partners, shared = _partners(overlap)
    return float((ours * 2 * shared / (ours + _take(theirs, partners))).sum() / ours.sum())
