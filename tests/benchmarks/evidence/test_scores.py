import math

import numpy as np
import pytest

from benchmarks.evidence.scores import share_shift, soft_neighborhood_density


def test_all_alike_is_as_dense_as_can_be() -> None:
    assert soft_neighborhood_density(np.tile(np.float32([0.8, 0.2]), (20, 1))) == pytest.approx(1)


def test_two_certain_clusters_by_hand() -> None:
    """Each of 20 pixels has 9 others like it, and 10 at similarity 0, which weigh e^(−1/0.05)."""
    clusters = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    total = 9 + 10 * math.exp(-20)
    near, far = 1 / total, math.exp(-20) / total
    expected = -(9 * near * math.log(near) + 10 * far * math.log(far)) / math.log(19)
    assert soft_neighborhood_density(clusters) == pytest.approx(expected, rel=1e-6)


def test_scattered_predictions_are_less_dense_than_clusters() -> None:
    spread = np.random.default_rng(0).dirichlet([0.5] * 4, 200).astype(np.float32)
    clusters = np.repeat(np.eye(2, 4, dtype=np.float32), 100, axis=0)
    assert soft_neighborhood_density(spread) < soft_neighborhood_density(clusters)


def test_too_few_or_broken_predictions_say_nothing() -> None:
    assert math.isnan(soft_neighborhood_density(np.full((2, 2), 0.5, np.float32)))
    assert math.isnan(soft_neighborhood_density(np.full((9, 2), np.nan, np.float32)))


def test_share_of_the_area_that_changed_class() -> None:
    assert share_shift(np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.1, 0.2])) == pytest.approx(0.2)
    assert share_shift(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1)
