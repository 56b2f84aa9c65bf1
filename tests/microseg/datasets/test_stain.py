import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import hed2rgb

from microseg.datasets.stain import STAIN_VECTORS, optical_density, transmitted_light


def test_stain_vectors_are_the_published_ones_at_unit_length():
    np.testing.assert_allclose(np.linalg.norm(STAIN_VECTORS, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(STAIN_VECTORS[0], np.array([0.65, 0.70, 0.29]) / np.sqrt(0.9966), rtol=1e-4)
    assert STAIN_VECTORS[1].argmax() == 1  # eosin absorbs green
    assert STAIN_VECTORS[2].argmax() == 2  # DAB absorbs blue


def test_transmitted_light_values():
    amounts = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]], dtype=np.float32)
    light = transmitted_light(amounts)
    np.testing.assert_allclose(light[0], 1.0)
    np.testing.assert_allclose(light[1], 10.0 ** -STAIN_VECTORS[1], rtol=1e-5)
    np.testing.assert_allclose(light[2], light[1] ** 2, rtol=1e-5)  # twice the stain transmits the fraction twice


def test_optical_density_values():
    image = np.array([[255, 26, 0]], dtype=np.uint8)
    np.testing.assert_allclose(optical_density(image)[0], [0.0, np.log10(255 / 26), np.log10(255)], rtol=1e-5)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(0, 0.5, width=32)))
def test_optical_density_inverts_transmitted_light(amounts):
    image = np.round(transmitted_light(amounts) * 255).astype(np.uint8)
    recovered = optical_density(image) @ np.linalg.inv(STAIN_VECTORS)
    np.testing.assert_allclose(recovered, amounts, atol=0.09)  # what rounding to 8 bits leaves


def test_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 0.4, (5, 5, 3)).astype(np.float32)
    raw = np.linalg.norm([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], axis=1)
    theirs = hed2rgb(amounts / raw / 6)  # scikit-image counts in units of 6 decades along the vectors as printed
    np.testing.assert_allclose(transmitted_light(amounts), theirs, atol=1e-4)
