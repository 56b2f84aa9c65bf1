from pathlib import Path

import numpy as np
import pytest

from microseg.datasets.sampling import Sample, cut_windows
from microseg.errors import DataError
from microseg.slides.images import read_image, write_png


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    rng = np.random.default_rng(0)
    for number in range(6):
        write_png(tmp_path / f"{number}.png", rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
    return [Sample(tmp_path / f"{number}.png", tmp_path / "no-mask.png") for number in range(6)]


def test_small_images_are_taken_whole(samples: list[Sample], tmp_path: Path) -> None:
    files = cut_windows(samples, tmp_path / "w", side=512)
    assert [file.name for file in files] == [f"{number:06d}.png" for number in range(6)]
    for sample, file in zip(samples, files, strict=True):
        assert np.array_equal(read_image(file), read_image(sample.image))


def test_windows_of_large_images_are_parts_of_them(samples: list[Sample], tmp_path: Path) -> None:
    (file,) = cut_windows(samples[:1], tmp_path / "w", side=32)
    window, image = read_image(file), read_image(samples[0].image)
    assert window.shape == (32, 32, 3)
    assert any(
        np.array_equal(image[top : top + 32, left : left + 32], window)
        for top in range(image.shape[0] - 31)
        for left in range(image.shape[1] - 31)
    )


def test_windows_are_at_the_models_scale(samples: list[Sample], tmp_path: Path) -> None:
    halved = [Sample(samples[0].image, zoom=0.5)]
    assert read_image(cut_windows(halved, tmp_path / "w", side=512)[0]).shape == (40, 50, 3)
    assert read_image(cut_windows(halved, tmp_path / "v", side=16)[0]).shape == (16, 16, 3)


def test_no_more_than_so_many_pixels_and_one_at_least(samples: list[Sample], tmp_path: Path) -> None:
    assert len(cut_windows(samples, tmp_path / "w", megapixels=0.025)) == 3  # of 0.008 each
    assert len(cut_windows(samples, tmp_path / "v", megapixels=0.001)) == 1


def test_the_seed_decides(samples: list[Sample], tmp_path: Path) -> None:
    one, same, other = (
        [file.name for file in cut_windows(samples, tmp_path / name, megapixels=0.025, seed=seed)]
        for name, seed in (("a", 1), ("b", 1), ("c", 4))
    )
    assert one == same != other


def test_refuses_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one image to cut windows from"):
        cut_windows([], tmp_path / "w")
