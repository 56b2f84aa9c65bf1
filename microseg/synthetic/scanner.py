"""A slide scanner: from transmitted light to the stored image."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

__all__ = ["Scanner", "scan"]


@dataclass(frozen=True)
class Scanner:
    """Optics, sensor and compression of one scanner.

    Args:
        white: RGB value of clear glass, as a fraction of full scale (white balance).
        overlap: Fraction of light that the green and blue channels share (broad sensor filters).
        gamma: Exponent on the normalized signal; above 1 darkens the mid-tones.
        blur: Standard deviation of the point-spread function, in microns (defocus).
        photons: Photons that a white pixel collects; fewer = more shot noise.
        jpeg_quality: 1..95, as Pillow counts.
    """

    white: tuple[float, float, float] = (0.95, 0.95, 0.95)
    overlap: float = 0.28
    gamma: float = 1.0
    blur: float = 0.5
    photons: float = 4000.0
    jpeg_quality: int = 90


def scan(
    light: npt.NDArray[np.float32], scanner: Scanner, *, mpp: float, oversampling: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Scan a section: point spread, sensor pixels, shot noise, white balance, gamma, JPEG.

    Args:
        light: Transmitted fraction in each RGB channel, ``oversampling`` samples per pixel side.
        scanner: The scanner's properties.
        mpp: Microns per pixel of the image.
        oversampling: Samples of ``light`` along the side of one pixel.
        rng: Random generator of the noise.

    Shape:
        (H * oversampling, W * oversampling, 3) -> (H, W, 3).

    Returns:
        The decoded image, RGB, 0..255.
    """
    share = scanner.overlap
    channels = np.array([[1, 0, 0], [0, 1 - share, share], [0, share, 1 - share]], dtype=np.float32)
    sigma = scanner.blur / mpp * oversampling
    spread = ndimage.gaussian_filter(light, (sigma, sigma, 0.0), mode="nearest", truncate=3.0)
    height, width = light.shape[0] // oversampling, light.shape[1] // oversampling
    samples = spread.reshape(height, oversampling, width, oversampling, 3)
    pixels = np.einsum("yxc,cd->yxd", samples.mean(axis=(1, 3)), channels)  # (H, W, 3)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.sqrt(pixels / scanner.photons)
    signal = np.clip(pixels + noise, 0.0, 1.1) ** scanner.gamma * np.asarray(scanner.white, dtype=np.float32)
    stored = np.round(np.clip(signal, 0.0, 1.0) * 255.0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, format="JPEG", quality=scanner.jpeg_quality)
    return np.asarray(Image.open(buffer).convert("RGB"), dtype=np.uint8)
