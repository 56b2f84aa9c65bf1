import numpy as np
import pytest

from microseg.data.canvas import Canvas, soft_step


def canvas(shape=(128, 128), pixel=1.0, seed=0):
    return Canvas(shape, pixel, np.random.default_rng(seed))


def test_soft_step_by_hand():
    np.testing.assert_allclose(soft_step(np.array([-2.0, -0.5, 0.0, 0.25, 0.5, 2.0])), [0, 0, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("pixel", [0.5, 1.0])
def test_noise_has_its_scale_in_microns(pixel):
    field = canvas((256, 256), pixel).noise(4.0)
    assert field.mean() == pytest.approx(0.0, abs=1e-3)
    assert field.std() == pytest.approx(1.0, abs=1e-3)
    lag = round(4.0 / pixel)
    correlation = np.mean(field[:, lag:] * field[:, :-lag])
    assert correlation == pytest.approx(
        np.exp(-1 / 4), abs=0.1
    )  # white noise under a Gaussian of sigma s: exp(-d²/4s²)


@pytest.mark.parametrize("angle", [0.0, 1.0, np.pi / 2, 2.5])
def test_fibres_run_along(angle):
    field = canvas((256, 256)).fibres(np.full((256, 256), angle, np.float32))
    down, right = np.gradient(field)
    orientation = 0.5 * np.arctan2(2 * np.mean(down * right), np.mean(right**2 - down**2))  # steepest, structure tensor
    turned = (orientation + np.pi / 2 - angle + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turned) < 0.15


def test_points_along_a_circle():
    y, x = np.indices((128, 128)) - 63.5
    height = (50.0 - np.hypot(y, x)).astype(np.float32)
    points = canvas().along_contours(height, 10.0, 5.0, 1.0)
    assert len(points) == pytest.approx(2 * np.pi * 40 / 5, abs=2)
    assert np.abs(np.hypot(*(points - 63.5).T) - 40).max() < 5
    assert len(canvas().along_contours(height, 10.0, 5.0, 0.0)) == 0
    assert len(canvas().along_contours(height, 99.0, 5.0, 1.0)) == 0


def test_scatter_and_clusters_keep_their_density_and_place():
    where = np.zeros((200, 200), bool)
    where[:, 100:] = True
    plane = canvas((200, 200), 5.0)  # a square millimetre
    points = plane.scatter(where, 2000.0)
    assert len(points) == pytest.approx(1000, rel=0.15)
    assert points[:, 1].min() >= 100
    clouds = plane.clusters(where, 40.0)
    assert where[tuple(clouds.T)].all()
    assert len(clouds) == pytest.approx(20 * 40, rel=0.5)


def test_an_ellipse_by_its_moments():
    along = np.full((128, 128), np.pi / 6, np.float32)
    plane = Canvas((128, 128), 0.25, np.random.default_rng(0))
    cover = plane.ellipses(np.array([[64, 64]]), along, (12.0, 4.0), turn=0.0, strength=(1.0, 1.0))
    y, x = np.indices(cover.shape)[:, cover > 0] - 64.0
    spread = np.cov(np.stack([x, y]))
    lengths, directions = np.linalg.eigh(spread)
    heading = np.arctan2(directions[1, 1], directions[0, 1]) % np.pi
    assert heading == pytest.approx(np.pi / 6, abs=0.1)
    assert 4 * np.sqrt(lengths[1]) * 0.25 == pytest.approx(12.0, rel=0.4)
    assert np.sqrt(lengths[1] / lengths[0]) == pytest.approx(3.0, rel=0.4)
    assert 0.75 < cover[64, 64] <= cover.max() <= 1.0


def test_no_points_no_cover():
    along = np.zeros((128, 128), np.float32)
    assert canvas().ellipses(np.zeros((0, 2), np.int64), along, (9.0, 4.0)).max() == 0
