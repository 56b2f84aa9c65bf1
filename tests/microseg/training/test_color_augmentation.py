import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from microseg.training import color_augmentation
from microseg.training.color_augmentation import (
    ColorStatistics,
    apply_jitter,
    color_statistics,
    draw_jitter,
    jitter_color,
    transfer_color,
)


def pictures(seed: int, count: int = 2, side: int = 24, low: float = 0.35, high: float = 0.75) -> torch.Tensor:
    """Images of two correlated stains and noise, pale enough that color changes do not saturate."""
    generator = torch.Generator().manual_seed(seed)
    stains = torch.rand(count, 2, side, side, generator=generator)
    vectors = torch.rand(count, 3, 2, generator=generator)
    density = torch.einsum("bcs,bshw->bchw", vectors, stains) + 0.6 * torch.rand(
        count, 3, side, side, generator=generator
    )
    span = density.amax((1, 2, 3), keepdim=True)
    return high - (high - low) * density / span


def test_statistics_by_hand() -> None:
    """Two pixels, white and gray 1/4: densities 0 and log of (1/4 · 255/256 + 1/256)."""
    image = torch.tensor([1.0, 0.25]).expand(1, 3, 1, 2)
    density = -math.log(0.25 * 255 / 256 + 1 / 256)
    got = color_statistics(image)
    torch.testing.assert_close(got.mean, torch.full((1, 3), density / 2, dtype=torch.float64), rtol=1e-5, atol=0)
    expected = torch.full((1, 3, 3), (density / 2) ** 2, dtype=torch.float64) + 1e-4 * torch.eye(3)
    torch.testing.assert_close(got.covariance, expected, rtol=1e-5, atol=1e-9)


def test_statistics_equal_numpy() -> None:
    images = pictures(0, count=3)
    got = color_statistics(images)
    for image, mean, covariance in zip(images.double().numpy(), got.mean, got.covariance, strict=True):
        density = -np.log(image * 255 / 256 + 1 / 256).reshape(3, -1)
        np.testing.assert_allclose(mean, density.mean(1), rtol=1e-5)
        np.testing.assert_allclose(covariance, np.cov(density, ddof=0) + 1e-4 * np.eye(3), rtol=1e-4, atol=1e-7)


def test_statistics_can_be_indexed() -> None:
    all_, pick = color_statistics(pictures(0, count=3)), torch.tensor([2, 0, 2])
    assert torch.equal(all_[pick].mean, all_.mean[[2, 0, 2]])
    assert torch.equal(all_[pick].covariance, all_.covariance[[2, 0, 2]])


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_full_transfer_gives_target_statistics(seed: int) -> None:
    images, target = pictures(seed), color_statistics(pictures(seed + 1, low=0.4, high=0.7))
    moved = transfer_color(images, target, torch.ones(2))
    assert moved.min() > 0
    assert moved.max() < 1
    got = color_statistics(moved)
    torch.testing.assert_close(got.mean, target.mean, rtol=0, atol=1e-4)
    # 1e-4 was added to both sides' variances, to be invertible; an image that has less in some direction keeps less
    torch.testing.assert_close(got.covariance, target.covariance, rtol=0.02, atol=2e-4)


def test_transfer_of_amount_0_keeps_the_image() -> None:
    images, target = pictures(0, low=0.0, high=1.0), color_statistics(pictures(1))
    torch.testing.assert_close(transfer_color(images, target, torch.zeros(2)), images, rtol=0, atol=1e-5)


def test_each_image_has_its_amount_and_target() -> None:
    images, target = pictures(0), color_statistics(pictures(1))
    own = color_statistics(images)
    moved = color_statistics(transfer_color(images, target, torch.tensor([0.25, 1.0])))
    torch.testing.assert_close(moved.mean[0], own.mean[0] + 0.25 * (target.mean - own.mean)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(moved.mean[1], target.mean[1], rtol=0, atol=1e-4)


def test_transfer_to_own_statistics_keeps_the_image() -> None:
    images = pictures(0)
    torch.testing.assert_close(
        transfer_color(images, color_statistics(images), torch.ones(2)), images, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("flat", [0.0, 0.5, 1.0])
def test_images_of_one_color_can_be_transferred(flat: float) -> None:
    """Bare glass, or a black frame: there is no covariance to invert."""
    moved = transfer_color(torch.full((2, 3, 8, 8), flat), color_statistics(pictures(0)), torch.ones(2))
    assert moved.isfinite().all()
    assert moved.std((2, 3)).max() < 1e-5
    given = ColorStatistics(torch.zeros(2, 3).double(), 1e-4 * torch.eye(3).double().expand(2, 3, 3))
    assert transfer_color(pictures(0), given, torch.ones(2)).isfinite().all()


def test_jitter_of_strength_0_keeps_the_images() -> None:
    images = pictures(0, low=0.0, high=1.0)
    assert torch.equal(jitter_color(images, 0.0, torch.Generator().manual_seed(0)), images)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), strength=st.floats(0.01, 3.0))
def test_jitter_equals_its_formula_in_numpy(seed: int, strength: float) -> None:
    """On the numbers that were drawn, image by image, in float64."""
    images, generator = pictures(seed, low=0.0, high=1.0), torch.Generator().manual_seed(seed)
    jitter = draw_jitter(len(images), strength, generator)
    assert jitter is not None
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed + 1))
    got = apply_jitter(images, jitter, torch.Generator().manual_seed(seed + 1))
    for index, image in enumerate(images.double().numpy()):
        matrix, offset, gamma, sigma, level = (number[index].double().numpy() for number in jitter)
        density = -np.log(image * 255 / 256 + 1 / 256)
        density = np.einsum("ij,jhw->ihw", matrix, density) + offset[:, None, None]
        changed = np.clip((np.exp(-density) - 1 / 256) * 256 / 255, 0, 1) ** gamma
        if sigma > 0:
            kernel = np.exp(-0.5 * (np.arange(-4, 5) / max(sigma, 1e-3)) ** 2)
            for axis in (1, 2):
                changed = ndimage.correlate1d(changed, kernel / kernel.sum(), axis, mode="nearest")
        expected = np.clip(changed + level * noise[index].numpy(), 0, 1)
        np.testing.assert_allclose(got[index], expected, atol=1e-4)


def test_images_that_are_not_blurred_are_blurred_alike_where_all_are() -> None:
    """A GPU blurs every image, with sigma 0 where it has none."""
    images, sigma = pictures(0, count=4), torch.tensor([0.0, 0.6, 1.4, 1e-3])
    torch.testing.assert_close(color_augmentation._blur_all(images, sigma), color_augmentation._blur(images, sigma))
    assert torch.equal(color_augmentation._blur_all(images, sigma)[0], images[0])


def test_densities_are_mapped_alike_on_a_gpu() -> None:
    """Without a matrix product there, which would be in TF32."""
    jitter = draw_jitter(2, 0.7, torch.Generator().manual_seed(0))
    assert jitter is not None
    density = pictures(1)
    elementwise = color_augmentation._map_elementwise(jitter.matrix, density)
    torch.testing.assert_close(elementwise, torch.einsum("bij,bjhw->bihw", jitter.matrix, density))


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), strength=st.floats(0.01, 3.0))
def test_jitter_stays_in_range_and_is_reproducible(seed: int, strength: float) -> None:
    images = pictures(seed, low=0.0, high=1.0)
    before = images.clone()
    one, other = (jitter_color(images, strength, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(images, before)
    assert (one.shape, one.dtype) == (images.shape, images.dtype)
    assert one.isfinite().all()
    assert one.min() >= 0
    assert one.max() <= 1
    assert not torch.equal(one, jitter_color(images, strength, torch.Generator().manual_seed(seed + 1)))


def test_stronger_jitter_changes_more() -> None:
    images, changes = pictures(0, count=16), []
    for strength in (0.1, 0.4, 1.0):
        changed = jitter_color(images, strength, torch.Generator().manual_seed(0))
        changes.append(float((changed - images).abs().mean()))
    assert 0 < 2 * changes[0] < changes[1] < changes[2] / 1.5


def test_jitter_does_not_move_edges() -> None:
    """Masks stay valid only if edges stay in place."""
    images = torch.full((32, 3, 24, 24), 0.9)
    images[:, :, :, 10:] = 0.3
    changed = jitter_color(images, 1.0, torch.Generator().manual_seed(0)).mean(1)  # (B, H, W)
    profile = changed.mean(1)  # (B, W)
    steps = (profile[:, 1:] - profile[:, :-1]).abs().argmax(1)
    contrast = (profile[:, :5].mean(1) - profile[:, -5:].mean(1)).abs()
    assert (steps[contrast > 0.1] == 9).all()
    assert int((contrast > 0.1).sum()) > 24


def test_images_of_a_batch_change_independently() -> None:
    changed = jitter_color(pictures(0, count=1).expand(6, -1, -1, -1), 1.0, torch.Generator().manual_seed(0))
    assert min(float((a - b).abs().max()) for n, a in enumerate(changed) for b in changed[:n]) > 0.01
