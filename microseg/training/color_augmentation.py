"""Stain and color augmentation of batches, which keeps labels valid.

All work in optical density, OD = −ln(I / I₀), where stains add up (Beer–Lambert), so a linear map there is a change
of stains.

What is random is drawn on the CPU, a few numbers for each image, apart from the noise. What is computed for each pixel
is computed on the device of the images, in float32, and never waits for a GPU: there are no decisions on values there.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = [
    "ColorStatistics",
    "Jitter",
    "apply_jitter",
    "color_statistics",
    "draw_jitter",
    "jitter_color",
    "transfer_color",
]

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
    root, inverse_root = _square_roots(own.covariance)
    transport = inverse_root @ _square_roots(root @ target.covariance @ root)[0] @ inverse_root  # (B, 3, 3)
    weight = amount.to(transport)[:, None, None]
    transport = (1 - weight) * torch.eye(3, dtype=transport.dtype, device=transport.device) + weight * transport
    mean = own.mean + weight[:, :, 0] * (target.mean - own.mean)
    density = _density(images)
    moved = _apply(transport, mean - (transport @ own.mean[:, :, None])[:, :, 0], density)
    return _intensity(moved.to(images.dtype)).contiguous(memory_format=torch.channels_last)


class Jitter(NamedTuple):
    """Random numbers of the color jitter of B images; the random noise itself is drawn where it is added.

    Attributes:
        matrix: (B, 3, 3), map of optical densities: stain amounts and hue.
        offset: (B, 3), added to optical densities: illumination.
        gamma: (B,), exponent of intensities.
        sigma: (B,), of the Gaussian blur, in pixels; 0 for none.
        noise: (B,), standard deviation of the noise; 0 for none.
    """

    matrix: torch.Tensor
    offset: torch.Tensor
    gamma: torch.Tensor
    sigma: torch.Tensor
    noise: torch.Tensor


def draw_jitter(count: int, strength: float, generator: torch.Generator) -> Jitter | None:
    """Draw the random numbers of a color jitter.

    Args:
        count: Number of images B.
        strength: 0 keeps the images; 1 is about the difference between labs.
        generator: Random generator, on the CPU.

    Returns:
        The numbers; None where the strength is 0.
    """
    if strength <= 0:
        return None

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    def uniform() -> torch.Tensor:
        return torch.rand(count, generator=generator)

    matrix = torch.eye(3) * torch.exp(0.25 * strength * normal(1, 1)) + 0.08 * strength * normal(3, 3)
    offset = 0.08 * strength * normal(3)
    gamma = torch.exp(0.2 * strength * normal())
    sigma = (1.5 * strength * uniform()).clamp_min(1e-3) * (uniform() < 0.5)
    noise = 0.03 * strength * uniform() * (uniform() < 0.5)
    return Jitter(matrix, offset, gamma, sigma, noise)


def apply_jitter(images: torch.Tensor, jitter: Jitter, generator: torch.Generator) -> torch.Tensor:
    """Change stain amounts, hue, illumination, sharpness and noise of each image.

    Args:
        images: (B, 3, H, W) in 0..1.
        jitter: Random numbers, on the images' device.
        generator: Random generator of the noise, on any device.

    Returns:
        (B, 3, H, W) in 0..1.

    Reference:
        Tellez et al. 2018 (stain augmentation in optical density), generalized from the stain basis to a random map
        close to the identity.
    """
    changed = _intensity(_apply(jitter.matrix, jitter.offset, _density(images)))
    changed = changed ** jitter.gamma[:, None, None, None]
    changed = _blur(changed, jitter.sigma)
    noise = torch.randn(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
    changed = changed + jitter.noise[:, None, None, None] * noise.to(images.device)
    return changed.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def jitter_color(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a color jitter and apply it; see `draw_jitter` and `apply_jitter`.

    Args:
        images: (B, 3, H, W) in 0..1, on the CPU.
        strength: 0 keeps the images; 1 is about the difference between labs.
        generator: Random generator, on the CPU.
    """
    jitter = draw_jitter(len(images), strength, generator)
    return images if jitter is None else apply_jitter(images, jitter, generator)


def _apply(matrix: torch.Tensor, offset: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    matrix, offset = matrix.to(density.dtype), offset.to(density.dtype)
    if density.device.type == "cpu":
        mapped = torch.einsum("bij,bjhw->bihw", matrix, density)
    else:  # a matrix product would be computed in TF32, with three digits
        mapped = (matrix[:, :, :, None, None] * density[:, None]).sum(2)
    return mapped + offset[:, :, None, None]


def _square_roots(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Square root and its inverse of symmetric positive definite matrices: (B, 3, 3) each."""
    if matrix.device.type != "cpu":
        return _roots_in_closed_form(matrix)
    values, vectors = torch.linalg.eigh(matrix)  # on a GPU it would wait for the result, to check it
    roots = values.clamp_min(_LEAST).sqrt()
    root = vectors @ torch.diag_embed(roots) @ vectors.transpose(-1, -2)
    inverse_root = vectors @ torch.diag_embed(1 / roots) @ vectors.transpose(-1, -2)
    return root, inverse_root


_LEAST = 1e-8  # eigenvalue


def _roots_in_closed_form(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`_square_roots` without an iteration: eigenvalues by trigonometry, roots by the Cayley–Hamilton theorem.

    Reference:
        Franca, "An algorithm to compute the square root of a 3×3 positive definite matrix", 1989.
    """
    identity = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1)  # (B,)
    centered = matrix - mean[:, None, None] * identity
    spread = (centered.square().sum((1, 2)) / 6).sqrt().clamp_min(1e-300)
    determinant = (torch.linalg.cross(centered[:, 0], centered[:, 1], dim=1) * centered[:, 2]).sum(1)
    angle = torch.acos((determinant / (2 * spread**3).clamp_min(1e-300)).clamp(-1, 1)) / 3
    largest = mean + 2 * spread * torch.cos(angle)
    smallest = mean + 2 * spread * torch.cos(angle + 2 * math.pi / 3)
    values = torch.stack([largest, 3 * mean - largest - smallest, smallest], dim=1)
    a, b, c = values.clamp_min(_LEAST).sqrt().unbind(1)  # eigenvalues of the root
    first, second, third = ((it)[:, None, None] for it in (a + b + c, a * b + a * c + b * c, a * b * c))
    root = (first * third * identity + (first.square() - second) * matrix - matrix @ matrix) / (first * second - third)
    inverse_root = (matrix - first * root + second * identity) / third
    return root, inverse_root


_RADIUS = 4  # pixels, of the blur


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Separable Gaussian blur with one sigma per image, in pixels; sigma 0 keeps the image."""
    if images.device.type != "cpu":
        return _blur_all(images, sigma)
    blurred = sigma > 0
    if not bool(blurred.any()):
        return images
    kernel = _gaussians(sigma[blurred], images.dtype).repeat_interleave(3, 0)  # (3b, 9)
    part = images[blurred]
    flat = F.pad(part.reshape(1, -1, *part.shape[2:]), (_RADIUS,) * 4, mode="replicate")  # (1, 3b, H+8, W+8)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=flat.shape[1])
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=flat.shape[1])
    result = images.clone()
    result[blurred] = flat.reshape(part.shape)
    return result


def _blur_all(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """`_blur` of all images alike, without choosing any, and not as a convolution, which would be in TF32."""
    kernel = _gaussians(sigma, images.dtype)[:, :, None, None, None]  # (B, 9, 1, 1, 1)
    height, width = images.shape[2:]
    padded = F.pad(images, (_RADIUS,) * 4, mode="replicate")  # (B, 3, H+8, W+8)
    rows = sum(kernel[:, k] * padded[..., k : k + width] for k in range(2 * _RADIUS + 1))
    assert isinstance(rows, torch.Tensor)
    blurred = sum(kernel[:, k] * rows[..., k : k + height, :] for k in range(2 * _RADIUS + 1))
    assert isinstance(blurred, torch.Tensor)
    return torch.where((sigma > 0)[:, None, None, None], blurred, images)


def _gaussians(sigma: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights of a Gaussian blur: (B,) → (B, 9), with sum 1."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=sigma.device, dtype=dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None].clamp_min(1e-3)) ** 2)
    return kernel / kernel.sum(1, keepdim=True)
