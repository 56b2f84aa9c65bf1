"""Development tasks of a changed class balance, made of a small lab of single cells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.adaptation.balance import change_balance, spread_on_glass
from benchmarks.adaptation.development import make_task
from microseg.annotations.index_masks import read_mask
from microseg.datasets.lab import read_lab_metadata
from microseg.slides.images import read_image
from microseg.synthetic.cells import CELLS_HE
from microseg.synthetic.labs import generate_image, generate_lab

CELLS = replace(CELLS_HE, density=3000.0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("development") / "lab"
    return generate_lab(folder, CELLS, images=10, size=96, mpp=0.5, labelled=True, seed=0)


@pytest.mark.parametrize("factor", [0.2, 0.5, 2.0])
def test_balance_changes_by_the_factor_on_average(factor: float) -> None:
    before, after = 0.0, 0.0
    for seed in range(8):
        image, mask = generate_image(CELLS, 128, 0.5, seed)
        _, changed = change_balance(image, mask, np.random.default_rng(seed), factor=factor)
        before, after = before + (mask > 0).sum(), after + (changed > 0).sum()
    assert after / before == pytest.approx(factor, rel=0.35)


def test_removed_objects_look_like_background() -> None:
    image, mask = generate_image(CELLS, 160, 0.5, 1)
    changed, truth = change_balance(image, mask, np.random.default_rng(0), factor=0.2)
    gone, ground = (mask > 0) & (truth == 0), (mask == 0) & (truth == 0)
    assert gone.sum() > 0.5 * (mask > 0).sum()
    np.testing.assert_allclose(changed[gone].mean(0), changed[ground].mean(0), atol=15)


def test_objects_are_spread_on_glass() -> None:
    image, mask = generate_image(CELLS, 160, 0.5, 2)
    changed, truth = spread_on_glass(image, mask, np.random.default_rng(0), factor=0.1, empty=0.0)
    assert changed.shape[:2] == truth.shape
    assert (truth > 0).mean() / (mask > 0).mean() == pytest.approx(0.1, abs=0.06)
    assert np.median(changed) > 230  # glass
    assert changed[truth > 0].mean() < 0.75 * changed[truth == 0].mean()
    empty = [spread_on_glass(image, mask, np.random.default_rng(seed), factor=0.1)[1].any() for seed in range(30)]
    assert 0.25 < np.mean(empty) < 0.75


def test_gray_images_stay_gray() -> None:
    image, mask = generate_image(CELLS, 96, 0.5, 2)
    gray = np.repeat(image[..., 1:2], 3, -1)
    rng = np.random.default_rng(0)
    for changed, _ in (
        spread_on_glass(gray, mask, rng, factor=0.2, empty=0.0),
        change_balance(gray, mask, rng, factor=2),
    ):
        assert (changed == changed[..., :1]).all()


def test_shifts_share_the_source(lab: Path, tmp_path: Path) -> None:
    sources = []
    for shift in ("sparse", "balance", "dab"):
        make_task(lab, shift, tmp_path / shift, seed=1, factor=0.2)
        images = tmp_path / shift / "source" / "images"
        sources.append({file.name: file.read_bytes() for file in images.iterdir()})
        assert read_lab_metadata(tmp_path / shift / "source").mpp == 0.5
    assert sources[0] == sources[1] == sources[2]
    assert len(sources[0]) == 6
    assert read_lab_metadata(tmp_path / "sparse" / "target").mpp is None


def test_target_has_no_masks_and_no_empty_test_image(lab: Path, tmp_path: Path) -> None:
    reached = make_task(lab, "balance", tmp_path / "task", factor=0.2)
    target = tmp_path / "task" / "target"
    assert 0 <= reached < 0.6
    assert not (target / "masks").exists()
    tests = sorted((target / "test" / "masks").iterdir())
    assert len(tests) == 2
    assert all(read_mask(file).any() for file in tests)
    assert all(read_image(target / "test" / "images" / file.name).shape == (96, 96, 3) for file in tests)
