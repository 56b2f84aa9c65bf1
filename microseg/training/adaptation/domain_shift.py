"""Domain shift of a target lab, estimated from its images alone.

It consists of the **scale**, where the pixel size is unknown: the one at which the batch-norm statistics come closest
to those of the source labs; and the **batch-norm statistics** of the lab's images, as they are and at that scale.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.normalization import NormStatistics, measure_statistics, statistics_distance

__all__ = ["DomainShift", "TargetLab", "center_crop", "estimate_domain_shift", "predict_at", "resize", "to_batch"]

SCALES = tuple(2 ** (step / 3) for step in range(-4, 5))  # 0.4 … 2.5
_SLACK = 0.15  # fraction of the best scale's gain that a scale nearer to 1 may lack
_TOLERANCE = 1.1  # or: factor by which its distance may exceed the smallest one
_IMAGES = 10  # used per lab
_SIDE = 384  # pixels, of the network's input at each scale

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DomainShift:
    """Difference of a target lab to the source labs.

    Attributes:
        zoom: Factor that enlarges the lab's images to the scale of the source labs.
        statistics: Batch-norm statistics of the network on the lab's images.
        zoomed_statistics: Batch-norm statistics on the images enlarged by ``zoom``.
    """

    zoom: float
    statistics: NormStatistics
    zoomed_statistics: NormStatistics


@dataclass(frozen=True)
class TargetLab:
    """A lab to adapt to.

    Attributes:
        name: Name of the lab.
        windows: Files of its image windows at the model's scale; see `cut_windows`.
        shift: Its domain shift.
    """

    name: str
    windows: tuple[Path, ...]
    shift: DomainShift


def estimate_domain_shift(
    network: PyramidSegmenter, source: Sequence[Image], target: Sequence[Image], *, search_scale: bool
) -> DomainShift:
    """Estimate the domain shift of a target lab.

    Args:
        network: Segmenter trained on the source labs; not changed.
        source: Images of the source labs at the model's scale.
        target: Images of the target lab, at the model's scale where their pixel size is known.
        search_scale: Whether to estimate the scale, at each candidate on the images that are large enough there for
            batch statistics; otherwise the scale is assumed to be the model's.

    Shape:
        images (H, W, 3), uint8
    """
    source, target = _evenly_spaced(source), _evenly_spaced(target)
    native = _measure(network, target, 1.0)
    zoom, zoomed = 1.0, native
    if search_scale:
        reference = _measure(network, source, 1.0)
        measured = {1.0: native}
        for scale in SCALES:
            large = [image for image in target if min(image.shape[:2]) * scale >= _min_side(network)]
            if large and scale != 1:
                measured[scale] = _measure(network, large, scale)
        distances = {scale: statistics_distance(reference, each) for scale, each in measured.items()}
        zoom = _modest_scale(distances)
        zoomed = measured[zoom]
    return DomainShift(zoom, native, zoomed)


def _modest_scale(distances: Mapping[float, float]) -> float:
    """Scale nearest to 1 among those whose distance is almost as small as the smallest."""
    least, present = min(distances.values()), distances[1.0]
    near = max(least + _SLACK * (present - least), _TOLERANCE * least)
    return min((scale for scale in distances if distances[scale] <= near), key=lambda scale: abs(math.log(scale)))


def to_batch(image: Image, device: torch.device) -> Tensor:
    """Convert an image to the network's input: (H, W, 3), 0..255 → (1, 3, H, W), 0..1."""
    pixels = torch.tensor(image, device=device).permute(2, 0, 1)[None]  # (1, 3, H, W)
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def resize(batch: Tensor, height: int, width: int) -> Tensor:
    """Resize bilinearly, with antialiasing where it shrinks."""
    if batch.shape[-2:] == (height, width):
        return batch
    return functional.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)


@torch.inference_mode()
def predict_at(network: PyramidSegmenter, batch: Tensor, zoom: float) -> Tensor:
    """Class probabilities of a batch by the network at another scale: (B, 3, H, W) → (B, K, H, W)."""
    height, width = batch.shape[-2:]
    zoomed = resize(batch, max(1, round(height * zoom)), max(1, round(width * zoom)))
    return resize(network.head.probabilities(network(zoomed)), height, width)


def _evenly_spaced(images: Sequence[Image]) -> list[Image]:
    """At most `_IMAGES` of the images, evenly spaced."""
    chosen = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().astype(int)
    return [images[int(index)] for index in chosen]


def center_crop(pixels: Image, side: int) -> Image:
    """Square center crop of an image or a mask, smaller where the image is."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _min_side(network: PyramidSegmenter) -> int:
    """Smallest side of an image in pixels: below it the deepest features are one pixel, which has no variance."""
    return int(2 * network.stride)


def _measure(network: PyramidSegmenter, images: Sequence[Image], zoom: float) -> NormStatistics:
    device = next(network.parameters()).device

    def zoomed(image: Image) -> Tensor:
        batch = to_batch(center_crop(image, round(_SIDE / zoom)), device)
        height, width = (max(_min_side(network), round(length * zoom)) for length in batch.shape[-2:])
        return resize(batch, height, width)

    return measure_statistics(network, (zoomed(image) for image in images))
