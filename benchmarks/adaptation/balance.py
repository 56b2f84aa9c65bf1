"""Change the class balance of a labelled image: objects spread on glass, objects removed, objects duplicated."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["change_balance", "optical_density", "spread_on_glass", "to_image"]

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
Density = npt.NDArray[np.float64]

_MAX_SIDE = 1024  # pixels, of an image of spread objects
_TRIES = 60  # places that are compared to find one without objects
_OVERLAP = 0.1  # fraction of such a place that may be objects
_EDGE = 2  # pixels around an object that belong to it
_GRAY = np.array([[0.42, 0.32, 0.30], [0.40, 0.36, 0.32], [0.20, 0.26, 0.30]])  # from the density of R, G and B
_MILD = np.array([[0.85, 0.06, 0.02], [0.05, 0.80, 0.05], [0.02, 0.10, 0.95]])


def spread_on_glass(
    image: Image, mask: Mask, rng: np.random.Generator, *, factor: float, empty: float = 0.5
) -> tuple[Image, Mask]:
    """Few of the objects on a smooth background, each in a paler body, in an almost gray stain.

    Bodies without an object, of the same kind, and debris are added. The image is enlarged where a single object would
    cover too much.

    Args:
        image: RGB, (H, W, 3).
        mask: Class indices, (H, W); adjacent pixels of any class but 0 are an object.
        rng: Random generator.
        factor: Foreground fraction in the mean over images, relative to that of the image.
        empty: Fraction of images without any object.
    """
    density, objects = optical_density(image), _objects(mask)
    wanted = factor * (mask > 0).mean() / (1 - empty)
    chosen: list[Any] = []
    if objects and rng.random() >= empty:
        inner = [it for it, (box, _) in enumerate(objects) if _is_inside(box, mask.shape)]
        order = rng.permutation(inner or len(objects))  # parts of objects at the border look cut
        areas = np.cumsum([objects[it][1].sum() for it in order])
        chosen = [objects[it] for it in order[: 1 + np.searchsorted(areas, wanted * mask.size)]]
    area = sum(int(part.sum()) for _, part in chosen)
    typical = float(np.median([part.sum() for _, part in objects])) if objects else 0.01 * mask.size
    radius = np.sqrt(typical / np.pi)
    side = int(np.clip(np.sqrt(max(mask.size, area / max(wanted, 1e-6))), 8 * radius, _MAX_SIDE))
    truth = np.zeros((side, side), np.uint8)
    bodies = np.zeros((side, side))
    laid, cover = np.zeros((side, side, 3)), np.zeros((side, side))
    for box, part in chosen:
        height, width = (min(length, side) for length in part.shape)
        top, left = (rng.integers(0, side - length + 1) for length in (height, width))
        place = (slice(top, top + height), slice(left, left + width))
        inside = part[:height, :width]
        _add_body(bodies, (top + height / 2, left + width / 2), radius, rng)
        truth[place] = np.where(inside, mask[box][:height, :width], truth[place])
        laid[place] = np.where(inside[..., None], density[box][:height, :width], laid[place])
        cover[place] = np.maximum(cover[place], inside)
    for _ in range(rng.poisson(1.0 + 0.5 * len(chosen))):
        _add_body(bodies, tuple(rng.uniform(0, side, 2)), radius, rng)
    object_density = np.median(density[mask > 0]) if mask.any() else 0.6
    body = 0.3 * object_density * bodies * (1 + 0.15 * ndimage.gaussian_filter(rng.normal(0, 2, truth.shape), 1.5))
    debris = ndimage.gaussian_filter((rng.random(truth.shape) < 0.0006).astype(float), 1.2) * 3 * object_density
    result = np.tile(0.04 + body + debris * (bodies > 0.2), (3, 1, 1)).transpose(1, 2, 0)
    near = ndimage.gaussian_filter(cover, 0.8)[..., None]
    filled = (
        laid[tuple(ndimage.distance_transform_edt(cover == 0, return_distances=False, return_indices=True))]
        if cover.any()
        else laid
    )
    result += near * np.maximum(filled @ _GRAY.T - 0.5 * result, 0)
    result = result * rng.uniform(0.85, 1.15) * np.array([1.0, 1.03, 0.9])
    result = ndimage.gaussian_filter(result, (0.6, 0.6, 0))
    return to_image(_like(image, result + rng.normal(0, 0.015, result.shape))), truth


def change_balance(image: Image, mask: Mask, rng: np.random.Generator, *, factor: float) -> tuple[Image, Mask]:
    """Remove each object with a probability, or duplicate objects, in a slightly other stain.

    A removed object is filled with a piece of the image without objects; an object that is larger than the space
    between the objects stays. Duplicates are placed where there is no object, as long as there is space.

    Args:
        image: RGB, (H, W, 3).
        mask: Class indices, (H, W); adjacent pixels of any class but 0 are an object.
        rng: Random generator.
        factor: Wanted foreground fraction, relative to that of the image.
    """
    pixels, truth = image.astype(float), mask.copy()
    objects = _objects(mask)
    if factor < 1:
        for box, part in objects:
            if rng.random() >= factor:
                _remove(pixels, truth, box, part, rng)
    elif objects:
        wanted, misses = factor * (mask > 0).sum(), 0
        while (truth > 0).sum() < wanted and misses < 20 * _TRIES:
            box, part = objects[rng.integers(len(objects))]
            misses += not _duplicate(pixels, truth, (image[box], mask[box], part), rng)
    density = optical_density(pixels) @ _MILD.T + 0.02
    return to_image(_like(image, density + rng.normal(0, 0.01, density.shape))), truth


def optical_density(image: npt.NDArray[np.floating] | Image) -> Density:
    """Natural logarithm of the absorbed light: (H, W, 3), 0..255 → 0..5.5."""
    return -np.log((np.asarray(image, np.float64) + 1) / 256)


def to_image(density: Density) -> Image:
    """Inverse of `optical_density`, rounded."""
    intensity = 256 * np.exp(-np.clip(density, 0, None)) - 1
    return np.asarray(np.clip(intensity, 0, 255).round(), np.uint8)


def _objects(mask: Mask) -> list[tuple[tuple[slice, slice], npt.NDArray[np.bool_]]]:
    """Bounding box of each object, and its pixels in it."""
    labels, _ = ndimage.label(mask > 0)
    return [(box, labels[box] == number) for number, box in enumerate(ndimage.find_objects(labels), 1)]


def _is_inside(box: tuple[slice, slice], shape: tuple[int, ...]) -> bool:
    return all(it.start > 0 and it.stop < length for it, length in zip(box, shape, strict=True))


def _add_body(bodies: Density, center: tuple[float, ...], radius: float, rng: np.random.Generator) -> None:
    """Add the cover by an irregular disk of 2 to 4 times the radius."""
    extent = radius * rng.uniform(2.0, 4.0)
    waves = [(k, rng.normal(0, 0.25 / k), rng.uniform(0, 2 * np.pi)) for k in range(2, 6)]
    box = tuple(slice(max(0, int(it - 2 * extent)), max(0, int(it + 2 * extent))) for it in center)
    y, x = np.indices(bodies.shape)[:, *box]
    far, angle = np.hypot(y - center[0], x - center[1]), np.arctan2(y - center[0], x - center[1])
    edge = sum(size * np.cos(k * angle + phase) for k, size, phase in waves)
    bodies[box] += rng.uniform(0.6, 1.1) / (1 + np.exp(np.clip(far - extent * (1 + edge), -40, 40)))


def _like(image: Image, density: Density) -> Density:
    """Density without color, where the image has none."""
    gray = bool((image == image[..., :1]).all())
    return np.repeat(density.mean(-1, keepdims=True), 3, -1) if gray else density


def _remove(
    pixels: Density, truth: Mask, box: tuple[slice, slice], part: npt.NDArray[np.bool_], rng: np.random.Generator
) -> None:
    margin = 2 * _EDGE + 1
    (top, bottom), (left, right) = (
        (max(0, it.start - margin), min(length, it.stop + margin)) for it, length in zip(box, truth.shape, strict=True)
    )
    whole = np.zeros((bottom - top, right - left), bool)
    whole[box[0].start - top : box[0].stop - top, box[1].start - left : box[1].stop - left] = part
    grown = ndimage.binary_dilation(whole, iterations=_EDGE)
    best, least = (top, left), np.inf
    for _ in range(_TRIES):
        y, x = (
            rng.integers(0, truth.shape[0] - whole.shape[0] + 1),
            rng.integers(0, truth.shape[1] - whole.shape[1] + 1),
        )
        used = (truth[y : y + whole.shape[0], x : x + whole.shape[1]] > 0)[grown].sum()
        if used < least:
            best, least = (int(y), int(x)), used
    if least > _OVERLAP * grown.sum():
        return
    chosen = (slice(best[0], best[0] + whole.shape[0]), slice(best[1], best[1] + whole.shape[1]))
    patch, labels = pixels[chosen].copy(), truth[chosen].copy()
    alpha = np.maximum(whole, ndimage.gaussian_filter(grown.astype(float), 1))[..., None]
    place = (slice(top, bottom), slice(left, right))
    pixels[place] += alpha * (patch - pixels[place])
    truth[place][whole] = labels[whole]


def _duplicate(
    pixels: Density, truth: Mask, piece: tuple[Image, Mask, npt.NDArray[np.bool_]], rng: np.random.Generator
) -> bool:
    """Paste a turned copy of an object where there is none; whether there was space."""
    turns = int(rng.integers(4))
    image, mask, part = (np.rot90(each, turns) for each in piece)
    height, width = part.shape
    if height > truth.shape[0] or width > truth.shape[1]:
        return False
    y, x = rng.integers(0, truth.shape[0] - height + 1), rng.integers(0, truth.shape[1] - width + 1)
    place = (slice(y, y + height), slice(x, x + width))
    if (truth[place] > 0)[ndimage.binary_dilation(part, iterations=1)].any():
        return False
    alpha = np.maximum(ndimage.gaussian_filter(part.astype(float), 0.7), 0)[..., None]
    pixels[place] += alpha * (image - pixels[place])
    truth[place][part] = mask[part]
    return True
