from pathlib import Path

import numpy as np
import pytest

from microseg.slides.slide import ArraySlide
from microseg.slides.tissue import find_tissue


def slide(*, tissue: tuple[int, int, int], glass: tuple[int, int, int], noise: float = 2.0) -> ArraySlide:
    pixels = np.empty((600, 800, 3), np.float32)
    pixels[:] = glass
    pixels[100:300, 200:500] = tissue
    pixels += np.random.default_rng(0).normal(0, noise, pixels.shape)
    return ArraySlide(pixels.clip(0, 255).astype(np.uint8), Path("slide.tif"), None)


@pytest.mark.parametrize(
    ("tissue", "glass"),
    [
        ((205, 140, 190), (243, 243, 243)),
        ((225, 215, 230), (245, 244, 246)),  # faint
        ((200, 190, 170), (228, 226, 214)),  # warm light
    ],
)
def test_separates_tissue_from_glass(tissue: tuple[int, int, int], glass: tuple[int, int, int]) -> None:
    found = find_tissue(slide(tissue=tissue, glass=glass)).tissue
    assert found.shape == (600, 800)
    assert found[100:300, 200:500].mean() > 0.99
    assert found[:90].mean() < 0.01
    assert found[310:].mean() < 0.01


def test_slide_without_glass_is_tissue_everywhere() -> None:
    assert find_tissue(slide(tissue=(150, 60, 120), glass=(170, 90, 140))).fraction == 1


@pytest.mark.parametrize(
    ("tissue", "background"),
    [
        ((200, 220, 190), (6, 6, 6)),
        ((20, 240, 30), (4, 4, 4)),
        ((250, 250, 250), (10, 10, 10)),
        ((90,) * 3, (200,) * 3),
    ],
)
def test_bright_tissue_of_fluorescence_and_gray_slides_is_no_glass(
    tissue: tuple[int, int, int], background: tuple[int, int, int]
) -> None:
    assert find_tissue(slide(tissue=tissue, glass=background)).fraction == 1


def test_touches_finds_tissue_in_a_region() -> None:
    tissue = find_tissue(slide(tissue=(150, 60, 120), glass=(244, 244, 244)))
    assert tissue.touches(0.3, 0.2, 0.4, 0.3)
    assert tissue.touches(0.6, 0.4, 0.9, 0.9)  # a corner
    assert not tissue.touches(0.7, 0.0, 1.0, 1.0)
    assert not tissue.touches(0.0, 0.0, 1e-6, 1e-6)
    assert tissue.touches(0.3, 0.2, 0.3, 0.2)
