import numpy as np
import pytest
from scipy import ndimage

from microseg.synthetic.tissue import Tissue, generate_section


@pytest.fixture(scope="module")
def section():
    return generate_section(Tissue(), (256, 256), 1.0, np.random.default_rng(2))


def test_glands_do_not_touch(section):
    number = section.gland
    for axis in (0, 1):
        here, there = np.moveaxis(number, axis, 0)[:-1], np.moveaxis(number, axis, 0)[1:]
        assert not np.any((here > 0) & (there > 0) & (here != there))


def test_parts_of_a_gland_are_inside_it(section):
    outside = section.gland == 0
    for name in ("epithelium", "lumen", "secretion", "goblet", "epithelial_nuclei"):
        assert getattr(section, name)[outside].max() == 0, name
    assert section.stromal_nuclei[~outside].max() == 0
    assert section.gap[outside].mean() > 0.02


def test_nuclei_are_basal_and_the_lumen_is_central(section):
    inside = section.gland > 0
    depth = ndimage.distance_transform_edt(inside)
    away = np.pad(np.ones((220, 220), bool), 18)  # glands cut by the border have no contour there
    nuclei = depth[(section.epithelial_nuclei > 0.5) & away]
    assert np.median(nuclei) < 9
    assert depth[(section.lumen > 0.5) & away].min() > 6


def test_sizes_follow_the_architecture():
    def mean_area(diameter):
        areas = []
        for seed in range(3):
            tissue = Tissue(gland_diameter=diameter, branching=0.0)
            gland = generate_section(tissue, (160, 160), 2.5, np.random.default_rng(seed)).gland
            areas.extend(np.bincount(gland[gland > 0])[np.unique(gland[gland > 0])] * 2.5**2)
        return np.mean(areas)

    small, large = mean_area(50.0), mean_area(100.0)
    assert 2.0 < large / small < 5.0  # four times, less what is cut by the border and the septa
    assert 0.3 < large / (np.pi / 4 * 100.0**2) < 1.2


def test_coverages_and_textures_are_in_range(section):
    for name in ("epithelium", "lumen", "secretion", "goblet", "wall", "gap", "red_cells", "epithelial_nuclei"):
        values = getattr(section, name)
        assert values.dtype == np.float32
        assert values.min() >= 0, name
        assert values.max() <= 1.0001, name
    for name in ("fine", "medium", "fibers"):
        values = getattr(section, name)
        assert abs(values.mean()) < 0.2, name
        assert values.std() == pytest.approx(1.0, abs=0.2), name
