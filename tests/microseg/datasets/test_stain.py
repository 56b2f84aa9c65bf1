import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import hed2rgb

from microseg.datasets.stain import (
    STAIN_VECTORS,
    STAINS,
    optical_density,
    stain_amounts,
    stain_matrix,
    transmitted_light,
)
from microseg.errors import DataError


def test_stain_vectors_are_the_published_ones_at_unit_length():
    matrix = stain_matrix(["hematoxylin", "eosin", "dab"])
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(matrix[0], np.array([0.65, 0.70, 0.29]) / np.sqrt(0.9966), rtol=1e-4)
    assert matrix[1].argmax() == 1  # eosin takes green
    assert matrix[2].argmax() == 2  # DAB takes blue


def test_transmitted_light_values():
    one = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    light = transmitted_light(one, ["eosin", "dab"])
    vector = np.array(STAIN_VECTORS["eosin"]) / np.linalg.norm(STAIN_VECTORS["eosin"])
    np.testing.assert_allclose(light[0], 1.0)
    np.testing.assert_allclose(light[1], 10.0**-vector, rtol=1e-5)
    np.testing.assert_allclose(light[2], light[1] ** 2, rtol=1e-5)  # twice the stain: the share passes twice


def test_optical_density_values():
    image = np.array([[255, 26, 0]], dtype=np.uint8)
    np.testing.assert_allclose(optical_density(image)[0], [0.0, np.log10(255 / 26), np.log10(255)], rtol=1e-5)
    np.testing.assert_allclose(optical_density(image, white=(200, 260, 255))[0, :2], [0.0, 1.0], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(0, 0.5, width=32)))
def test_recovers_amounts_from_the_image(amounts):
    image = np.round(transmitted_light(amounts) * 255).astype(np.uint8)
    np.testing.assert_allclose(stain_amounts(image), amounts, atol=0.09)  # what rounding to 8 bits leaves


def test_recovers_amounts_of_two_stains():
    amounts = np.array([[0.6, 0.0], [0.0, 0.4], [0.3, 0.2]], dtype=np.float32)
    image = np.round(transmitted_light(amounts, ["hematoxylin", "dab"]) * 255).astype(np.uint8)
    np.testing.assert_allclose(stain_amounts(image, ["hematoxylin", "dab"]), amounts, atol=0.02)


def test_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 0.4, (5, 5, 3)).astype(np.float32)
    raw = np.linalg.norm([STAIN_VECTORS[name] for name in STAINS], axis=1)
    theirs = hed2rgb(amounts / raw / 6)  # they count in units of 6 decades along the vectors as printed
    np.testing.assert_allclose(transmitted_light(amounts), theirs, atol=1e-4)


def test_rejects_unknown_stain_and_wrong_axis():
    with pytest.raises(DataError, match=r"safranin.*use one of"):
        stain_matrix(["safranin"])
    with pytest.raises(DataError, match=r"expected 2 amounts.*got 3"):
        transmitted_light(np.zeros((2, 3), np.float32), ["eosin", "dab"])
