import numpy as np
import pytest

from microseg.synthetic.scanner import Scanner, scan

QUIET = Scanner(white=(1.0, 1.0, 1.0), overlap=0.0, gamma=1.0, blur=1e-6, photons=1e12, jpeg_quality=95)


def picture(light, scanner, **options):
    return scan(
        light.astype(np.float32), scanner, **{"mpp": 1.0, "oversampling": 1, **options}, rng=np.random.default_rng(0)
    )


def test_glass_has_the_color_of_the_white_balance():
    scanner = Scanner(white=(0.9, 0.8, 0.7), overlap=0.3, gamma=1.5, blur=1.0, photons=1e12)
    np.testing.assert_allclose(picture(np.ones((16, 16, 3)), scanner), np.tile([230, 204, 178], (16, 16, 1)), atol=3)


def test_gamma_and_overlap_values():
    light = np.tile([0.5, 0.25, 0.75], (16, 16, 1))
    np.testing.assert_allclose(picture(light, QUIET)[8, 8], [128, 64, 191], atol=3)
    np.testing.assert_allclose(picture(light, Scanner(**{**QUIET.__dict__, "gamma": 2.0}))[8, 8], [64, 16, 143], atol=3)
    # green sees 0.5 * 0.25 + 0.5 * 0.75, and so does blue
    np.testing.assert_allclose(
        picture(light, Scanner(**{**QUIET.__dict__, "overlap": 0.5}))[8, 8], [128, 128, 128], atol=3
    )


@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_blur_is_in_microns(mpp):
    light = np.zeros((64, 64, 3))
    light[:, 32:] = 1.0
    edge = picture(light, Scanner(**{**QUIET.__dict__, "blur": 2.0}), mpp=mpp)[32, :, 1] / 255.0
    slope = np.diff(edge)
    center = np.sum(np.arange(63) * slope)
    sigma = np.sqrt(np.sum((np.arange(63) - center) ** 2 * slope)) * mpp
    assert sigma == pytest.approx(2.0, rel=0.1)


def test_pixels_are_means_of_their_samples():
    light = np.kron(np.array([[0.2, 0.6], [0.6, 1.0]]), np.ones((8, 8)))[..., None].repeat(3, axis=2)
    light[::2] -= 0.1
    light[1::2] += 0.1 * (light[1::2] < 0.9)
    small = picture(light, QUIET, oversampling=2)
    assert small.shape == (8, 8, 3)
    np.testing.assert_allclose(small[1, 1] / 255.0, 0.2, atol=0.02)


def test_shot_noise_grows_with_the_square_root_of_light():
    noisy = Scanner(**{**QUIET.__dict__, "photons": 400.0})
    dim, bright = (picture(np.full((64, 64, 3), level), noisy).std() / 255.0 for level in (0.04, 0.64))
    assert bright / dim == pytest.approx(4.0, rel=0.25)
    assert 0.5 < bright / np.sqrt(0.64 / 400) <= 1.1  # JPEG smooths the color noise
