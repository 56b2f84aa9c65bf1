"""Objects that other programs found are scored as microseg's are."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.objects.__main__ import METRICS
from benchmarks.objects.peers import score_objects
from microseg.annotations.instance_masks import write_instances
from microseg.errors import LabError
from microseg.evaluation.references import Reference
from microseg.slides.images import write_png


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    """Two objects of 4 × 4 pixels that touch, and a third one apart."""
    labels = np.zeros((12, 12), np.int32)
    labels[1:5, 1:5], labels[1:5, 5:9], labels[8:12, 8:12] = 1, 2, 3
    write_png(tmp_path / "image.png", np.zeros((12, 12, 3), np.uint8))
    write_png(tmp_path / "mask.png", (labels > 0).astype(np.uint8))
    write_instances(tmp_path / "labels.png", labels)
    return Reference("a", tmp_path / "image.png", tmp_path / "mask.png", None, instances=tmp_path / "labels.png")


def test_objects_count_and_not_only_pixels(reference: Reference) -> None:
    labels = np.zeros((12, 12), np.int32)
    labels[1:5, 1:5], labels[1:5, 5:9], labels[8:12, 8:12] = 7, 3, 9  # other numbers
    scores = score_objects([reference], [labels], ("background", "nucleus"))
    assert set(scores) == set(METRICS)
    assert scores == pytest.approx(dict.fromkeys(METRICS, 1.0) | {"count_error": 0.0})
    labels[labels == 3] = 7  # the two that touch are one: 1 of 2 found is right, 1 of 3 is found
    merged = score_objects([reference], [labels], ("background", "nucleus"))
    assert merged["dice"] == 1
    assert merged["count_error"] == pytest.approx(1 / 3)
    assert merged["f1"] == pytest.approx(2 * 1 / (2 + 3))


def test_scores_are_means_over_the_images(reference: Reference) -> None:
    right = np.zeros((12, 12), np.int32)
    right[1:5, 1:5], right[1:5, 5:9], right[8:12, 8:12] = 1, 2, 3
    scores = score_objects([reference, reference], [right, np.zeros_like(right)], ("background", "nucleus"))
    assert (scores["f1"], scores["dice"], scores["count_error"]) == pytest.approx((0.5, 0.5, 0.5))


def test_several_classes_are_refused(reference: Reference) -> None:
    with pytest.raises(LabError, match="one class of objects, got"):
        score_objects([reference], [np.zeros((12, 12), np.int32)], ("background", "nucleus", "cell"))
