"""Stain and color augmentation of batches, which keeps labels valid.

All work in optical density, OD = −ln(I / I₀), where stains add up (Beer–Lambert), so a linear map there is a change
of stains.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

__all__ = ["ColorStatistics", "color_statistics", "jitter_color", "transfer_color"]

_DARKEST = 1 / 256  # added to the intensity, so that black has a finite density


def _density(images: torch.Tensor) -> torch.Tensor:
    return -torch.log(images.clamp(0, 1) * (1 - _DARKEST) + _DARKEST)  # (B, 3, H, W), 0 for white


def _intensity(density: torch.Tensor) -> torch.Tensor:
    return ((torch.exp(-density) - _DARKEST) / (1 - _DARKEST)).clamp(0, 1)


@dataclass(frozen=True)
class ColorStatistics:
    """Mean and covariance of the optical density of B images.

    Attributes:
        mean: (B, 3).
        covariance: (B, 3, 3), symmetric and positive definite.
    """

    mean: torch.Tensor
    covariance: torch.Tensor

    def __getitem__(self, index: torch.Tensor) -> "ColorStatistics":
        """Statistics of some of the images."""
        return ColorStatistics(self.mean[index], self.covariance[index])


def color_statistics(images: torch.Tensor) -> ColorStatistics:
    """Mean and covariance of each image's optical density.

    Args:
        images: (B, 3, H, W) in 0..1.
    """
    pixels = _density(images).flatten(2).double()  # (B, 3, N)
    mean = pixels.mean(2)
    centered = pixels - mean[:, :, None]
    covariance = centered @ centered.transpose(1, 2) / pixels.shape[2]  # (B, 3, 3)
    return ColorStatistics(mean, covariance + 1e-4 * torch.eye(3, dtype=covariance.dtype, device=covariance.device))


def transfer_color(images: torch.Tensor, target: ColorStatistics, amount: torch.Tensor) -> torch.Tensor:
    """Transfer color statistics to images: optimal transport between two Gaussians in optical density.

    Args:
        images: (B, 3, H, W) in 0..1.
        target: Statistics of B images.
        amount: (B,) in 0..1; 0 keeps the image, 1 gives it the target's statistics, values between interpolate.

    Returns:
        (B, 3, H, W) in 0..1.

    Reference:
        Pitié & Kokaram 2007, "The linear Monge–Kantorovitch linear color mapping for example-based color transfer".
    Deviation:
        In optical density instead of RGB, where stains are additive.
    """
    own = color_statistics(images)
    root, inverse_root = _matrix_power(own.covariance, 0.5), _matrix_power(own.covariance, -0.5)
    transport = inverse_root @ _matrix_power(root @ target.covariance @ root, 0.5) @ inverse_root  # (B, 3, 3)
    weight = amount.to(transport)[:, None, None]
    transport = (1 - weight) * torch.eye(3, dtype=transport.dtype, device=transport.device) + weight * transport
    mean = own.mean + weight[:, :, 0] * (target.mean - own.mean)
    density = _density(images)
    moved = _apply(transport, mean - (transport @ own.mean[:, :, None])[:, :, 0], density)
    return _intensity(moved.to(images.dtype)).contiguous(memory_format=torch.channels_last)


def jitter_color(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Randomly change stain amounts, hue, illumination, sharpness and noise of each image.

    Args:
        images: (B, 3, H, W) in 0..1.
        strength: 0 keeps the images; 1 is about the difference between labs.
        generator: Random generator, on the CPU.

    Returns:
        (B, 3, H, W) in 0..1.

    Reference:
        Tellez et al. 2018 (stain augmentation in optical density), generalized from the stain basis to a random map
        close to the identity.
    """
    if strength <= 0:
        return images
    count, device = images.shape[0], images.device

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator)

    matrix = torch.eye(3) * torch.exp(0.25 * strength * normal(1, 1)) + 0.08 * strength * normal(3, 3)
    offset = 0.08 * strength * normal(3)
    density = _apply(matrix.to(device), offset.to(device), _density(images))
    changed = _intensity(density)
    changed = changed ** torch.exp(0.2 * strength * normal(1, 1, 1)).to(device)
    sigma = (1.5 * strength * uniform(1)[:, 0]).clamp_min(1e-3) * (uniform(1)[:, 0] < 0.5)
    changed = _blur(changed, sigma.to(device))
    noise = 0.03 * strength * uniform(1, 1, 1) * (uniform(1, 1, 1) < 0.5)
    changed = changed + noise.to(device) * torch.randn(images.shape, generator=generator).to(device)
    return changed.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def _apply(matrix: torch.Tensor, offset: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    mapped = torch.einsum("bij,bjhw->bihw", matrix.to(density.dtype), density)
    return mapped + offset.to(density.dtype)[:, :, None, None]


def _matrix_power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    power: torch.Tensor = vectors @ torch.diag_embed(values.clamp_min(1e-8) ** exponent) @ vectors.transpose(-1, -2)
    return power


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Separable Gaussian blur with one sigma per image, in pixels; sigma 0 keeps the image."""
    blurred = sigma > 0
    if not bool(blurred.any()):
        return images
    radius = 4
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma[blurred, None].clamp_min(1e-3)) ** 2)  # (b, 9)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (3b, 9)
    part = images[blurred]
    flat = F.pad(part.reshape(1, -1, *part.shape[2:]), (radius,) * 4, mode="replicate")  # (1, 3b, H+8, W+8)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=flat.shape[1])
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=flat.shape[1])
    result = images.clone()
    result[blurred] = flat.reshape(part.shape)
    return result
