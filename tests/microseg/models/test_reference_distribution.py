"""Distances by hand, the rate of images above the limit, and the JSON form."""

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microseg.config.params import OutOfDistributionSettings
from microseg.errors import DataError
from microseg.models.reference_distribution import (
    LabDistribution,
    ReferenceDistribution,
    fit_lab_distribution,
    summarize_scores,
)

SIZE = 12
Features = npt.NDArray[np.float64]


def draw(rng: np.random.Generator, slides: int, each: int, center: float = 0.0) -> tuple[Features, list[str]]:
    """Images of a lab with correlated features, and whose slides differ more than their images."""
    mixing = np.random.default_rng(7).normal(size=(SIZE, SIZE)) * 0.1
    slide = np.repeat(rng.normal(size=(slides, SIZE)), each, axis=0)
    images = center + (slide + 0.3 * rng.normal(size=slide.shape)) @ mixing
    return images, [f"slide_{number // each}" for number in range(len(images))]


def plain(limit: float, center: tuple[float, float] = (0, 0)) -> LabDistribution:
    return LabDistribution(9, np.array(center, float), np.diag([4.0, 1.0]), limit)


def test_ood_score_is_the_distance_to_the_nearest_lab_over_its_limit() -> None:
    points = np.array([[0, 0], [4, 0], [0, 4], [10, 0]], float)
    assert plain(2).distances(points).tolist() == [0, 2, 4, 5]
    one = ReferenceDistribution(("a", "b"), {"x": plain(2)})
    assert one.ood_score(points).tolist() == [0, 1, 2, 2.5]
    both = ReferenceDistribution(("a", "b"), {"x": plain(2), "y": plain(4, (10, 0))})
    assert both.ood_score(points).tolist() == pytest.approx([0, 0.75, np.hypot(5, 4) / 4, 0])
    assert np.isnan(ReferenceDistribution((), {}).ood_score(points)).all()


@pytest.mark.parametrize(("slides", "each", "most"), [(8, 1, 0.03), (20, 2, 0.03), (40, 1, 0.03), (250, 1, 0.025)])
def test_new_images_of_a_reference_lab_exceed_the_limit_at_the_stated_rate(slides: int, each: int, most: float) -> None:
    outside, reached = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reference = ReferenceDistribution((), {"x": fit_lab_distribution(*draw(rng, slides, each))})
        outside.append((reference.ood_score(draw(rng, 500, 1)[0]) > 1).mean())
        reached.append(np.median(reference.ood_score(draw(rng, 500, 1)[0])))
    assert np.mean(outside) <= most
    assert np.mean(reached) > 0.25  # the limit is not much too high
    if slides == 250:
        assert np.mean(outside) >= 0.003


def test_other_lab_is_out_of_distribution_until_it_is_added() -> None:
    rng = np.random.default_rng(0)
    a, b = draw(rng, 24, 2), draw(rng, 24, 2, center=1.5)
    reference = ReferenceDistribution((), {"a": fit_lab_distribution(*a)})
    new = draw(rng, 200, 1, center=1.5)[0]
    assert (reference.ood_score(new) > 1).mean() > 0.9
    assert (
        ReferenceDistribution((), {"a": fit_lab_distribution(*a), "b": fit_lab_distribution(*b)}).ood_score(new) > 1
    ).mean() < 0.03


def test_limit_accounts_for_slides() -> None:
    """Twenty images of each of six slides: with cross-validation by image, new slides would exceed the limit."""
    rng = np.random.default_rng(1)
    images, slides = draw(rng, 6, 20)
    new = draw(rng, 300, 1)[0]
    by_slide = ReferenceDistribution((), {"x": fit_lab_distribution(images, slides)})
    by_image = ReferenceDistribution(
        (), {"x": fit_lab_distribution(images, [str(number) for number in range(len(images))])}
    )
    assert (by_slide.ood_score(new) > 1).mean() < 0.05
    assert (by_image.ood_score(new) > 1).mean() > 0.3


def test_limit_is_robust_to_an_outlier() -> None:
    rng = np.random.default_rng(2)
    images, slides = draw(rng, 40, 1)
    images[0] = 100
    reference = ReferenceDistribution((), {"x": fit_lab_distribution(images, slides)})
    assert reference.ood_score(images[:1])[0] > 5
    assert (reference.ood_score(draw(rng, 200, 1, center=2.0)[0]) > 1).mean() > 0.9


@given(st.integers(5, 12), st.integers(0, 1000), st.floats(0, 1e-9))
@settings(max_examples=25)
def test_few_and_equal_images_give_finite_values(images: int, seed: int, spread: float) -> None:
    features = 1 + spread * np.random.default_rng(seed).normal(size=(images, SIZE))
    lab = fit_lab_distribution(features, [""] * images)
    assert lab.limit >= 1
    assert np.isfinite(lab.distances(features + 3)).all()
    assert (np.linalg.eigvalsh(lab.covariance) > 0).all()


def test_json_form_is_restored() -> None:
    reference = ReferenceDistribution(("a", "b"), {"x": plain(2), "y": plain(3, (1, 2))})
    back = ReferenceDistribution.from_dict(json.loads(json.dumps(reference.to_dict(), allow_nan=False)))
    points = np.random.default_rng(0).normal(size=(5, 2))
    assert back.features == ("a", "b")
    assert back.ood_score(points).tolist() == reference.ood_score(points).tolist()
    with pytest.raises(DataError, match="reference distribution 1"):
        ReferenceDistribution.from_dict({"kind": "something else"})


def test_summary_exceeds_limits_by_share_or_median() -> None:
    summary = summarize_scores([0.2, 0.4, 1.5, float("nan")])
    assert (summary.images, summary.out_of_distribution, summary.share, summary.median_score) == (
        3,
        1,
        pytest.approx(1 / 3),
        0.4,
    )
    assert not summary.exceeds_limits  # a single image
    assert not summarize_scores([1.5]).exceeds_limits
    some = [0.2, 0.3, 0.4, 1.2, 1.5]
    assert summarize_scores(some).exceeds_limits
    assert not summarize_scores(some, OutOfDistributionSettings(max_share=0.4)).exceeds_limits
    nearly = [0.3, 0.81, 0.9]
    assert summarize_scores(nearly).exceeds_limits
    assert not summarize_scores(nearly, OutOfDistributionSettings(max_median_score=0.81)).exceeds_limits
    assert summarize_scores([1.0] * 9).out_of_distribution == 0
    nothing = summarize_scores([])
    assert (nothing.images, nothing.exceeds_limits) == (0, False)
    assert np.isnan(nothing.median_score)
