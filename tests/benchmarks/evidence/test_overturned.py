import numpy as np
import pytest

from benchmarks.evidence.overturned import confident_pixels, overturn_support, overturned_share


def test_pixels_are_confident_where_certain_and_consistent() -> None:
    foreground = np.array([[0.95, 0.95, 0.6, 0.05]], np.float32)
    view = np.array([[1, 0, 1, 0]], np.uint8)
    assert confident_pixels(np.stack([1 - foreground, foreground]), [view]).tolist() == [[True, False, False, True]]


def test_overturned_share_by_hand() -> None:
    production = np.array([0, 0, 0, 0, 1, 1], np.uint8)
    candidate = np.array([1, 0, 0, 1, 1, 0], np.uint8)
    confident = np.array([True, True, True, False, True, True])
    assert overturned_share(production, candidate, confident, 2) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert overturned_share(production, production, confident, 2) == 0
    assert overturned_share(production, candidate, confident & (production == 0), 2) == pytest.approx(1 / 3)
    assert np.isnan(overturned_share(production, candidate, np.zeros(6, bool), 2))


def test_support_says_what_overturned_pixels_look_like() -> None:
    old = np.repeat([1, 0, 0], 100).astype(np.uint8)
    new = np.repeat([1, 1, 0], 100).astype(np.uint8)
    for place in (0.0, 0.25, 1.0):
        scores = np.repeat([10.0, 10 * place, 0.0], 100)
        assert overturn_support(old, new, scores, 1) == pytest.approx(place, abs=1e-6)
        assert overturn_support(new, old, scores, 1) == pytest.approx(1 - place, abs=1e-6)
    assert overturn_support(old, old, scores, 1) == pytest.approx(0.5)
    assert overturn_support(np.zeros_like(old), new, scores, 1) == 0.5
