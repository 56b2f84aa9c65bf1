"""How a new lab's images differ from those that the segmenter knows, told from the images alone.

The **scale**, where microns per pixel are not known: the one at which the statistics inside the network come closest to
those of the labelled labs. And the lab's **own normalization statistics**, at its scale and at that found.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.normalization import NormStatistics, measure_statistics, statistics_distance

__all__ = ["DomainShift", "estimate_domain_shift", "middle", "predict_at", "resize", "to_batch"]

SCALES = tuple(2 ** (step / 3) for step in range(-4, 5))  # 0.4 … 2.5
_SLACK = 0.15  # of what the best scale brings, which a scale nearer to 1 may miss
_TAKE_ONE = 1.1  # or this many times its distance
_IMAGES = 10
_SIDE = 384  # pixels, of what the network sees at each scale

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DomainShift:
    """What the adaptation has to bridge to one lab.

    Attributes:
        zoom: factor by which the lab's images are enlarged to come to the labelled labs' scale.
        statistics: the network's on the lab's images as they are.
        zoomed_statistics: the same at ``zoom``.
    """

    zoom: float
    statistics: NormStatistics
    zoomed_statistics: NormStatistics


def estimate_domain_shift(
    network: PyramidSegmenter, source: Sequence[Image], target: Sequence[Image], *, search_scale: bool
) -> DomainShift:
    """Measure a lab's shift.

    Args:
        network: the segmenter trained on the labelled labs; not changed.
        source: images of the labelled labs at the model's scale.
        target: images of the new lab, likewise as far as microns per pixel are known.
        search_scale: whether the target's scale is to be found, each scale on the images that do not become too small
            there to have statistics; else it is taken to be the model's.

    Shape:
        images (H, W, 3), uint8
    """
    source, target = _spread(source), _spread(target)
    native = _measure(network, target, 1.0)
    zoom, zoomed = 1.0, native
    if search_scale:
        reference = _measure(network, source, 1.0)
        measured = {1.0: native}
        for scale in SCALES:
            large = [image for image in target if min(image.shape[:2]) * scale >= _least_side(network)]
            if large and scale != 1:
                measured[scale] = _measure(network, large, scale)
        distances = {scale: statistics_distance(reference, each) for scale, each in measured.items()}
        zoom = _modest_scale(distances)
        zoomed = measured[zoom]
    return DomainShift(zoom, native, zoomed)


def _modest_scale(distances: Mapping[float, float]) -> float:
    """The scale nearest to 1 among those that bring the lab nearly as close as the best does."""
    least, present = min(distances.values()), distances[1.0]
    near = max(least + _SLACK * (present - least), _TAKE_ONE * least)
    return min((scale for scale in distances if distances[scale] <= near), key=lambda scale: abs(math.log(scale)))


def to_batch(image: Image, device: torch.device) -> Tensor:
    """An image as the network takes it: (H, W, 3), 0..255 → (1, 3, H, W), 0..1."""
    pixels = torch.tensor(image, device=device).permute(2, 0, 1)[None]  # (1, 3, H, W)
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def resize(batch: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, antialiased where it shrinks."""
    if batch.shape[-2:] == (height, width):
        return batch
    return functional.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)


@torch.inference_mode()
def predict_at(network: PyramidSegmenter, batch: Tensor, zoom: float) -> Tensor:
    """Class probabilities of a batch, seen by the network at another scale: (B, 3, H, W) → (B, K, H, W)."""
    height, width = batch.shape[-2:]
    seen = resize(batch, max(1, round(height * zoom)), max(1, round(width * zoom)))
    return resize(network(seen).softmax(1), height, width)


def _spread(images: Sequence[Image]) -> list[Image]:
    """So many of the images, spread evenly over them."""
    chosen = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().astype(int)
    return [images[int(index)] for index in chosen]


def middle(pixels: Image, side: int) -> Image:
    """The middle of an image or a mask, of so many pixels on each side, or less where it is smaller."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _least_side(network: PyramidSegmenter) -> int:
    """Of an image, in pixels: with less its deepest features are one pixel, which has no variance."""
    return int(2 * network.stride)


def _measure(network: PyramidSegmenter, images: Sequence[Image], zoom: float) -> NormStatistics:
    device = next(network.parameters()).device

    def seen(image: Image) -> Tensor:
        batch = to_batch(middle(image, round(_SIDE / zoom)), device)
        height, width = (max(_least_side(network), round(length * zoom)) for length in batch.shape[-2:])
        return resize(batch, height, width)

    return measure_statistics(network, (seen(image) for image in images))
