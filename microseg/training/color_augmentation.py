"""Stain and color augmentation of batches, which keeps labels valid.

All work in optical density, OD = −ln(I / I₀), where stains add up (Beer–Lambert), so a linear map there is a change
of stains.

What is random is drawn on the CPU, a few numbers for each image, apart from the noise. `map_color` and `apply_jitter`
compute on the device of the images, in float32, and never wait for a GPU: there are no decisions on values.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = [
    "ColorMap",
    "ColorStatistics",
    "Jitter",
    "apply_jitter",
    "color_statistics",
    "draw_jitter",
    "jitter_color",
    "map_color",
    "transfer_color",
    "transfer_map",
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


class ColorMap(NamedTuple):
    """Affine map of the optical density of each of B images.

    Attributes:
        matrix: (B, 3, 3).
        offset: (B, 3).
    """

    matrix: torch.Tensor
    offset: torch.Tensor


def transfer_map(own: ColorStatistics, target: ColorStatistics, amount: torch.Tensor) -> ColorMap:
    """Map that gives images other color statistics: optimal transport between two Gaussians in optical density.

    Args:
        own: Statistics of B images.
        target: Statistics to give them.
        amount: (B,) in 0..1; 0 keeps an image, 1 gives it the target's statistics, values between interpolate.

    Reference:
        Pitié & Kokaram 2007, "The linear Monge–Kantorovitch linear color mapping for example-based color transfer".
    Deviation:
        In optical density instead of RGB, where stains are additive.
    """
    root, inverse_root = _matrix_power(own.covariance, 0.5), _matrix_power(own.covariance, -0.5)
    transport = inverse_root @ _matrix_power(root @ target.covariance @ root, 0.5) @ inverse_root  # (B, 3, 3)
    weight = amount.to(transport)[:, None, None]
    transport = (1 - weight) * torch.eye(3, dtype=transport.dtype, device=transport.device) + weight * transport
    mean = own.mean + weight[:, :, 0] * (target.mean - own.mean)
    return ColorMap(transport, mean - (transport @ own.mean[:, :, None])[:, :, 0])


def map_color(images: torch.Tensor, colors: ColorMap) -> torch.Tensor:
    """Apply an affine map of the optical density.

    Args:
        images: (B, 3, H, W) in 0..1.
        colors: Map of each image, on their device.

    Returns:
        (B, 3, H, W) in 0..1.
    """
    mapped = _intensity(_apply(colors.matrix, colors.offset, _density(images)))
    return mapped.contiguous(memory_format=torch.channels_last)


def transfer_color(images: torch.Tensor, target: ColorStatistics, amount: torch.Tensor) -> torch.Tensor:
    """Give images other color statistics; see `transfer_map`.

    Args:
        images: (B, 3, H, W) in 0..1.
        target: Statistics of B images.
        amount: (B,) in 0..1.

    Returns:
        (B, 3, H, W) in 0..1.
    """
    return map_color(images, transfer_map(color_statistics(images), target, amount))


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
        mapped = _map_elementwise(matrix, density)
    return mapped + offset[:, :, None, None]


def _map_elementwise(matrix: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    return (matrix[:, :, :, None, None] * density[:, None]).sum(2)


def _matrix_power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    power: torch.Tensor = vectors @ torch.diag_embed(values.clamp_min(1e-8) ** exponent) @ vectors.transpose(-1, -2)
    return power


_RADIUS = 4  # pixels, of the blur


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Separable Gaussian blur with one sigma per image, in pixels; sigma 0 keeps the image."""
    if images.device.type != "cpu":
        return _blur_all(images, sigma)  # to choose some, a GPU would have to be waited for
    blurred = sigma > 0
    if not bool(blurred.any()):
        return images
    result = images.clone()
    result[blurred] = _blur_all(images[blurred], sigma[blurred])
    return result


def _blur_all(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None].clamp_min(1e-3)) ** 2)  # (B, 9)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (3B, 9)
    flat = F.pad(images.reshape(1, -1, *images.shape[2:]), (_RADIUS,) * 4, mode="replicate")  # (1, 3B, H+8, W+8)
    # one convolution a channel: on CUDA by a kernel of PyTorch in float32, not by cuDNN in TF32
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=flat.shape[1])
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=flat.shape[1])
    return flat.reshape(images.shape)
