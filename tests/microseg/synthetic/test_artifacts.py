from dataclasses import replace

import numpy as np
import pytest

from microseg.synthetic import artifacts
from microseg.synthetic.artifacts import ARTIFACTS, add_artifacts
from microseg.synthetic.labs import LAB_A, generate_image


@pytest.fixture
def light():
    return np.random.default_rng(0).uniform(0.3, 1.0, (96, 96, 3)).astype(np.float32)


def test_no_artifact_without_a_share(light):
    rng = np.random.default_rng(0)
    assert add_artifacts(light, 0.0, 1.0, rng) is light
    assert rng.random() == np.random.default_rng(0).random()  # so that labs without artifacts stay as they were


def test_share_is_the_fraction_of_images(light):
    changed = [add_artifacts(light, 0.3, 1.0, np.random.default_rng(seed)) is not light for seed in range(100)]
    assert 0.18 < np.mean(changed) < 0.42


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_artifact_covers_a_part(light, kind, monkeypatch):
    monkeypatch.setattr(artifacts, "ARTIFACTS", (kind,))
    changed = [np.abs(add_artifacts(light, 1.0, 1.0, np.random.default_rng(seed)) - light) > 0.02 for seed in range(8)]
    share = np.mean([each.any(axis=-1).mean() for each in changed])
    assert 0.01 < share < 0.7
    assert all(0 <= value <= 1.3 for value in (light.min(), light.max()))


def test_artifacts_do_not_move_the_ground_truth():
    _, mask = generate_image(LAB_A, 64, 2.0, 1)
    _, covered = generate_image(replace(LAB_A, artifacts=1.0), 64, 2.0, 1)
    np.testing.assert_array_equal(mask, covered)
