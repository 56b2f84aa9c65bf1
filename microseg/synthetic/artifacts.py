"""Artifacts of preparation and scanning: pen, fold, defocus and air bubbles, drawn over the light of a section."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.synthetic.canvas import FloatMap, soft_step

__all__ = ["ARTIFACTS", "add_artifacts"]

Light = npt.NDArray[np.float32]

ARTIFACTS = ("pen", "fold", "defocus", "bubble")
_INKS = ((0.10, 0.25, 0.55), (0.10, 0.40, 0.20), (0.08, 0.08, 0.10))  # transmitted by blue, green and black pen


def add_artifacts(light: Light, share: float, pixel: float, rng: np.random.Generator) -> Light:
    """Draw one artifact over the light, with a probability.

    The ground truth stays that of the tissue, whether or not it can still be seen.

    Args:
        light: Transmitted fraction in each RGB channel.
        share: Probability of an artifact; at 0 the random generator does not advance.
        pixel: Side of a sample, in microns.
        rng: Random generator.

    Shape:
        (H, W, 3) → (H, W, 3)

    Returns:
        The light with the artifact.
    """
    if not share or rng.random() >= share:
        return light
    kind = ARTIFACTS[rng.integers(len(ARTIFACTS))]
    height, width = light.shape[:2]
    y, x = np.indices((height, width), dtype=np.float32) * np.float32(pixel)
    y, x = y - y.mean(), x - x.mean()
    extent, angle = pixel * min(height, width), rng.uniform(0.0, np.pi)
    across = x * np.cos(angle) + y * np.sin(angle) + 0.2 * extent * rng.normal()  # microns from a line
    curved = across + 0.06 * extent * np.sin((y * np.cos(angle) - x * np.sin(angle)) * 6.0 / extent)
    if kind == "pen":
        cover = _band(curved, 0.10 * extent, 2.0)
        ink = np.array(_INKS[rng.integers(len(_INKS))], np.float32)
        return _over(light, ink * (0.7 + 0.3 * light), cover)
    if kind == "fold":  # the section lies double, shifted
        shift = tuple(rng.integers(-height // 4, height // 4, 2))
        cover = _band(curved, 0.07 * extent, 2.0)
        return _over(light, light * np.roll(light, shift, (0, 1)), cover)
    if kind == "defocus":
        cover = soft_step(across / (0.4 * extent))
        blurred = ndimage.gaussian_filter(light, (4.0 / pixel, 4.0 / pixel, 0.0), mode="nearest")
        return _over(light, blurred, cover)
    radius = extent * rng.uniform(0.15, 0.3)
    center = rng.uniform(-0.35, 0.35, 2) * extent
    inward = radius - np.hypot(y - center[0], x - center[1])
    rim = _band(inward, 0.03 * extent, 2.0)
    inside = soft_step(inward / 3.0)
    hazy = 0.6 * ndimage.gaussian_filter(light, (3.0 / pixel, 3.0 / pixel, 0.0), mode="nearest") + 0.35
    return _over(_over(light, hazy, inside), 0.3 * light, rim)


def _over(light: Light, above: Light, cover: FloatMap) -> Light:
    """Light where another layer covers it in part."""
    mixed: Light = light + cover[..., None] * (above - light)
    return mixed


def _band(distance: FloatMap, width: float, edge: float) -> FloatMap:
    """Coverage of a band of a width around distance 0, with soft edges (all in microns)."""
    return soft_step((width / 2 - np.abs(distance)) / edge)
