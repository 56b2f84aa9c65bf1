import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microseg.errors import DataError
from microseg.evaluation import criteria
from microseg.evaluation.criteria import (
    class_shares,
    cohen_kappa,
    domain_separability,
    prediction_entropy,
    stain_explained_variance,
)
from microseg.slides.modality import Modality


def test_entropy_by_hand() -> None:
    """One pixel certain (0 bit), one even (1 bit), one at 1/4 : 3/4 (0.811278 bit)."""
    probabilities = np.array([[[1.0, 0.5, 0.25]], [[0.0, 0.5, 0.75]]], np.float32)
    assert prediction_entropy(probabilities) == pytest.approx((0 + 1 + 0.8112781) / 3, abs=1e-6)
    assert prediction_entropy(np.full((5, 2, 2), 0.2, np.float32)) == pytest.approx(1)


@settings(max_examples=30)
@given(classes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_entropy_is_relative_to_the_maximum(classes: int, seed: int) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(classes), size=(4, 5)).astype(np.float32)
    assert 0 <= prediction_entropy(np.moveaxis(probabilities, -1, 0)) <= 1


def test_cohen_kappa_by_hand() -> None:
    first = np.array([[1, 1, 0, 0], [2, 0, 0, 0]], np.uint8)
    second = np.array([[1, 0, 0, 0], [2, 0, 0, 0]], np.uint8)
    by_chance = (5 * 6 + 2 * 1 + 1 * 1) / 64
    assert cohen_kappa(first, second, 3) == pytest.approx((7 / 8 - by_chance) / (1 - by_chance))
    assert cohen_kappa(first, second, 4) == cohen_kappa(first, second, 3)  # an absent class has no effect
    assert cohen_kappa(first, first, 3) == 1
    assert cohen_kappa(first, np.zeros_like(first), 3) == 0


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), share=st.floats(0.1, 0.95))
def test_cohen_kappa_of_independent_segmentations_is_about_zero(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.random((2, 100, 100)) < share).astype(np.uint8)
    assert cohen_kappa(first, second, 2) < 0.06


def test_cohen_kappa_of_a_single_class_is_nan() -> None:
    nothing = np.zeros((4, 4), np.uint8)
    assert np.isnan(cohen_kappa(nothing, nothing, 3))


def test_class_shares_by_hand() -> None:
    mask = np.array([[0, 0, 1], [2, 255, 255]], np.uint8)
    np.testing.assert_allclose(class_shares(mask, 4), [0.5, 0.25, 0.25, 0])
    assert np.isnan(class_shares(np.full((2, 2), 255, np.uint8), 2)).all()


def test_separability_of_the_same_features_is_a_half() -> None:
    features = np.random.default_rng(0).normal(size=(12, 30)).astype(np.float32)
    assert domain_separability(features, features) == pytest.approx(0.5, abs=0.15)  # random deviation


def test_separability_of_two_samples_of_one_distribution_is_about_a_half() -> None:
    rng = np.random.default_rng(0)
    found = [domain_separability(*rng.normal(size=(2, 20, 40)).astype(np.float32)) for _ in range(30)]
    assert 0.42 < np.mean(found) < 0.58


def test_separability_of_separate_labs_is_1() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(6, 40)), rng.normal(size=(9, 40))
    target[:, 3] += 100  # one feature of forty is enough
    assert domain_separability(source.astype(np.float32), target.astype(np.float32)) == 1
    assert domain_separability(target.astype(np.float32), source.astype(np.float32)) == 1


def test_separability_rises_with_the_distance() -> None:
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(2, 24, 10))
    found = [
        domain_separability(source.astype(np.float32), (target + shift).astype(np.float32)) for shift in (0, 0.4, 1, 3)
    ]
    assert found == sorted(found)
    assert found[0] < 0.65
    assert found[-1] > 0.99


def test_separability_ignores_units_and_constant_features() -> None:
    rng = np.random.default_rng(2)
    source, target = rng.normal(size=(2, 12, 5))
    target += 0.5
    scale = np.array([1, 10, 0.1, 1000, 1])
    constant = np.full((12, 1), 7.0)
    plain = domain_separability(source.astype(np.float32), target.astype(np.float32))
    other = domain_separability(
        np.hstack([source * scale, constant]).astype(np.float32),
        np.hstack([target * scale, constant]).astype(np.float32),
    )
    assert other == pytest.approx(plain, abs=0.03)


def test_separability_is_cross_validated_over_images() -> None:
    """With more features than images every training set is separable, but the test folds are not."""
    rng = np.random.default_rng(3)
    found = [domain_separability(*rng.normal(size=(2, 8, 500)).astype(np.float32)) for _ in range(20)]
    assert np.mean(found) < 0.65


def test_separability_is_cross_validated_over_slides() -> None:
    """Images of one slide are similar: one in the training fold reveals the lab of the others."""
    rng = np.random.default_rng(5)
    alone, by_slide = [], []
    for _ in range(20):
        looks = rng.normal(size=(2, 5, 1, 60))
        labs = (looks + 0.05 * rng.normal(size=(2, 5, 4, 60))).reshape(2, 20, 60).astype(np.float32)
        slides = [f"slide {number // 4}" for number in range(20)]
        alone.append(domain_separability(*labs))
        by_slide.append(domain_separability(*labs, (slides, slides)))
    assert np.mean(alone) > 0.95
    assert np.mean(by_slide) < 0.65


def test_separability_of_labs_of_one_slide_is_cross_validated_over_images() -> None:
    source, target = np.array([[0.0], [0.1]], np.float32), np.array([[1.0], [1.1]], np.float32)
    assert domain_separability(source, target, (["a", "a"], ["b", "b"])) == 1


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 3)])
def test_separability_needs_two_images_of_each(n: int, m: int) -> None:
    with pytest.raises(DataError, match=f"at least two images of each lab, got {n} and {m}: give more"):
        domain_separability(np.zeros((n, 4), np.float32), np.zeros((m, 4), np.float32))


def test_separability_of_two_images_each() -> None:
    source, target = np.array([[0.0], [0.1]], np.float32), np.array([[1.0], [1.1]], np.float32)
    assert domain_separability(source, target) == 1


def halves(dark: int = 90) -> npt.NDArray[np.uint8]:
    image = np.full((160, 160, 3), 200, np.uint8)
    image[:, 80:] = dark
    return image


def test_stain_explains_a_mask_that_follows_it() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(halves() + rng.normal(0, 5, (160, 160, 3)), 0, 255).astype(np.uint8)
    true = np.zeros((160, 160), np.uint8)
    true[:, 80:] = 1
    assert stain_explained_variance(image, true, 2) > 0.85
    assert stain_explained_variance(image, np.ascontiguousarray(true.T), 2) < 0.05
    half = true.copy()
    half[80:] = 0
    assert 0.2 < stain_explained_variance(image, half, 2) < 0.6


def test_stain_explained_variance_does_not_depend_on_class_indices() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, (30, 30), dtype=np.uint8)
    swapped = np.array([2, 0, 1], np.uint8)[mask]
    assert stain_explained_variance(image, mask, 3) == pytest.approx(stain_explained_variance(image, swapped, 3))


def test_stain_explained_variance_of_a_single_class_is_zero() -> None:
    assert stain_explained_variance(halves(), np.zeros((160, 160), np.uint8), 2) == 0
    assert stain_explained_variance(halves(200), np.eye(160, dtype=np.uint8), 2) < 0.01


def test_stain_explained_variance_is_close_to_that_of_least_squares() -> None:
    """With densities only: R² of numpy's least squares, which the ridge regression approximates."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 6))
    y = np.eye(2)[(x[:, 0] + 0.5 * rng.normal(size=500) > 0).astype(int)]
    a = np.concatenate([x, np.ones((500, 1))], 1)
    fitted = a @ np.linalg.lstsq(a, y, rcond=None)[0]
    expected = 1 - ((y - fitted) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert criteria._explained(x, y) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("modality", [Modality.GRAY, Modality.FLUORESCENCE])
def test_intensity_and_texture_explain_a_mask_of_an_image_without_stain(modality: Modality) -> None:
    """Half of the image is of the same gray value as the other, but not smooth."""
    rng = np.random.default_rng(0)
    image = np.full((160, 160, 1), 150.0)
    image[:, 80:] += rng.normal(0, 12, (160, 80, 1))
    image = np.clip(np.repeat(image, 3, axis=2), 0, 255).astype(np.uint8)
    true = np.zeros((160, 160), np.uint8)
    true[:, 80:] = 1
    assert stain_explained_variance(image, true, 2, modality) > 0.8
    assert stain_explained_variance(image, true, 2) < 0.4
    assert stain_explained_variance(halves(), true, 2, modality) > 0.85
    assert stain_explained_variance(image, np.ascontiguousarray(true.T), 2, modality) < 0.05


def test_explained_variance_of_a_large_image_is_that_of_a_sample_of_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    mask = np.repeat(np.repeat(rng.random((30, 40)) < 0.4, 10, 0), 10, 1).astype(np.uint8)
    image = np.clip(220 - 90 * mask[..., None] + rng.normal(0, 45, (*mask.shape, 3)), 0, 255).astype(np.uint8)
    whole = stain_explained_variance(image, mask, 2)
    monkeypatch.setattr(criteria, "_SAMPLE", 20_000)  # of 120,000
    assert 0.3 < whole < 0.95
    assert stain_explained_variance(image, mask, 2) == pytest.approx(whole, abs=0.01)
    assert stain_explained_variance(image, mask, 2) == stain_explained_variance(image, mask, 2)
