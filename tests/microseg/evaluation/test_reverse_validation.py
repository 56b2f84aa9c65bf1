import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from microseg.evaluation.pixel_features import PIXEL_STRIDE, pixel_features
from microseg.evaluation.reverse_validation import (
    LabelledPixels,
    forward_scores,
    forward_validation,
    linear_direction,
    reverse_validation,
)
from microseg.slides.modality import Modality


def lab(share: float, seed: int, offset: float = 0.0) -> tuple[LabelledPixels, npt.NDArray[np.uint8]]:
    """Nuclei (class 1) within cells: nuclei differ in the first feature, cells in the second; and what is a cell."""
    rng = np.random.default_rng(seed)
    nucleus, cell = rng.random(8000) < share, rng.random(8000) < 4 * share
    cell |= nucleus
    features = np.stack([3 * nucleus, 3 * cell, 0 * cell], axis=1) + rng.normal(size=(8000, 3)) + offset
    return LabelledPixels(features.astype(np.float32), nucleus.astype(np.uint8)), cell.astype(np.uint8)


def test_true_labels_separate_the_source_at_any_class_balance() -> None:
    source = lab(0.2, 0)[0]
    found = [reverse_validation(source, lab(share, 1, offset=5.0)[0], 2) for share in (0.2, 0.02)]
    assert min(found) > 0.95
    assert found[0] == pytest.approx(found[1], abs=0.03)
    assert forward_validation(source, lab(0.02, 1, offset=5.0)[0], 2) > 0.97


def test_labels_of_something_else_do_not() -> None:
    source, (target, cell) = lab(0.2, 0)[0], lab(0.1, 1)
    whole = reverse_validation(source, LabelledPixels(target.features, cell), 2)
    random = np.random.default_rng(2).integers(0, 2, len(cell)).astype(np.uint8)
    assert whole < reverse_validation(source, target, 2) - 0.05
    assert reverse_validation(source, LabelledPixels(target.features, random), 2) < 0.75


def test_a_class_that_is_not_predicted_is_worth_a_half() -> None:
    source, (target, cell) = lab(0.2, 0)[0], lab(0.1, 1)
    nothing = LabelledPixels(target.features, np.zeros_like(cell))
    assert reverse_validation(source, nothing, 2) == forward_validation(source, nothing, 2) == 0.5
    assert reverse_validation(source, target, 3) == reverse_validation(source, target, 2)  # the source has no class 2
    assert np.isnan(reverse_validation(nothing, target, 2))


def test_ignored_pixels_do_not_count() -> None:
    source, (target, _) = lab(0.2, 0)[0], lab(0.1, 1)
    features = np.concatenate([target.features, np.full((500, 3), 1000, np.float32)])
    labels = np.concatenate([target.labels, np.full(500, 255, np.uint8)])
    assert reverse_validation(source, LabelledPixels(features, labels), 2) == reverse_validation(source, target, 2)


def test_forward_scores_rank_the_pixels_of_the_class_first() -> None:
    source, (target, _) = lab(0.2, 0)[0], lab(0.1, 1, offset=-2.0)
    scores = forward_scores(source, target.features, 1)
    assert scores is not None
    assert roc_auc_score(target.labels == 1, scores) > 0.97
    assert forward_scores(source, target.features, 2) is None


def test_agrees_with_scikit_learn() -> None:
    pixels = lab(0.5, 3)[0]
    positive = pixels.labels == 1
    theirs = LinearDiscriminantAnalysis(priors=[0.5, 0.5], solver="lsqr").fit(pixels.features, positive).coef_[0]
    ours = linear_direction(pixels.features, positive)
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.98  # but for the shrinkage


@pytest.mark.parametrize(("modality", "channels"), [(Modality.STAINED, 3), (Modality.GRAY, 1)])
def test_features_are_those_of_every_fourth_pixel(modality: Modality, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 22, 3), dtype=np.uint8)
    found = pixel_features(image, modality)
    assert found.shape == (10, 6, channels * 4 * 5)
    assert np.isfinite(found).all()
    first = -np.log((image[..., 0] + 1.0) / 256) if channels == 3 else image.mean(2)
    smooth = ndimage.gaussian_filter(first.astype(np.float32), 1.0)
    np.testing.assert_allclose(found[..., 0], smooth[::PIXEL_STRIDE, ::PIXEL_STRIDE], rtol=1e-4)


def test_features_of_a_constant_and_of_a_single_row_are_finite() -> None:
    flat = pixel_features(np.full((1, 9, 3), 7, np.uint8), Modality.GRAY)
    assert flat.shape == (1, 3, 20)
    assert np.isfinite(flat).all()
    np.testing.assert_allclose(flat.reshape(3, 4, 5)[..., 0], 7, rtol=1e-5)
    np.testing.assert_allclose(flat.reshape(3, 4, 5)[..., 1:], 0, atol=0.05)
