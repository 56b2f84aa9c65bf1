import numpy as np
import pytest

from microseg.synthetic.canvas import Canvas, soft_step


def canvas(shape=(128, 128), pixel=1.0, seed=0):
    return Canvas(shape, pixel, np.random.default_rng(seed))


def test_soft_step_values():
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
def test_fibers_follow_the_direction(angle):
    field = canvas((256, 256)).fibers(np.full((256, 256), angle, np.float32))
    down, right = np.gradient(field)
    orientation = 0.5 * np.arctan2(2 * np.mean(down * right), np.mean(right**2 - down**2))  # steepest, structure tensor
    turned = (orientation + np.pi / 2 - angle + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turned) < 0.15


@pytest.mark.parametrize("pixel", [0.5, 1.0])
def test_points_along_a_circular_contour(pixel):
    plane = canvas((128, 128), pixel)
    radius = np.hypot(*(np.indices((128, 128)) - 63.5)) * pixel
    height = (50.0 * pixel - radius).astype(np.float32)
    points = plane.along_contours(height, 10.0 * pixel, 5.0, 1.0)
    distances = np.hypot(*(points - 63.5).T) * pixel
    assert len(points) == pytest.approx(2 * np.pi * 40 * pixel / 5, abs=2)
    assert distances.mean() == pytest.approx(40 * pixel, abs=0.7)
    assert distances.std() < 1.5
    assert len(plane.along_contours(height, 10.0 * pixel, 5.0, 0.0)) == 0
    assert len(plane.along_contours(height, 99.0, 5.0, 1.0)) == 0


def test_scatter_and_clusters_have_their_density():
    where = np.zeros((200, 200), bool)
    where[:, 100:] = True
    plane = canvas((200, 200), 5.0)  # a square millimeter
    points = plane.scatter(where, 2000.0)
    assert len(points) == pytest.approx(1000, rel=0.15)
    assert points[:, 1].min() >= 100
    clouds = plane.clusters(where, 40.0)
    assert where[tuple(clouds.T)].all()
    assert len(clouds) == pytest.approx(20 * 40, rel=0.5)


@pytest.mark.parametrize("angle", [0.3, 1.2, 2.5])
def test_ellipse_moments(angle):
    along = np.full((128, 128), angle, np.float32)
    plane = canvas((128, 128), 0.25)
    cover = plane.ellipses(np.array([[64, 64]]), along, (12.0, 4.0), turn=0.0, strength=(1.0, 1.0))
    y, x = np.indices(cover.shape)[:, cover > 0] - 64.0
    lengths, directions = np.linalg.eigh(np.cov(np.stack([x, y])))
    turned = (np.arctan2(directions[1, 1], directions[0, 1]) - angle + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turned) < 0.05
    length, width = 4 * np.sqrt(lengths[::-1]) * 0.25  # an even ellipse is four standard deviations long
    assert length == pytest.approx(12.0, rel=0.25)
    assert width == pytest.approx(4.0, rel=0.25)
    assert 0.75 < cover[64, 64] <= cover.max() <= 1.0


def test_no_points_give_no_coverage():
    along = np.zeros((128, 128), np.float32)
    assert canvas().ellipses(np.zeros((0, 2), np.int64), along, (9.0, 4.0)).max() == 0
