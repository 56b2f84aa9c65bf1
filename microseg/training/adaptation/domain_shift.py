"""Domain shift of a target lab, estimated from its images alone.

It consists of the **scale**, where the pixel size is unknown: the one at which the batch-norm statistics come closest
to those of the source labs; the **batch-norm statistics** of the lab's images, as they are and at that scale; and the
**share** of these statistics that the network can use.

Statistics depend on the class balance of the images as well as on their stain. Both estimates assume that the balance
is about that of the source labs. Where it is not, the distances of all scales are about equal, and the predictions with
the lab's statistics are less confident, or depend more on how an image is presented, than those without: then the scale
stays 1, and the share becomes 0.
"""

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from microseg.datasets.sampling import evenly_spaced
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.normalization import (
    NormStatistics,
    measure_statistics,
    mix_statistics,
    read_statistics,
    statistics_distance,
    write_statistics,
)
from microseg.training.color_augmentation import jitter_color

__all__ = [
    "SHIFT_IMAGES",
    "DomainShift",
    "TargetLab",
    "ViewPredictions",
    "at_scale",
    "center_crop",
    "estimate_domain_shift",
    "mixed_network",
    "modest_scale",
    "outputs_at",
    "predict_at",
    "predict_views",
    "resize",
    "to_batch",
]

SHIFT_IMAGES = 10
"""Images of a lab that are used, at most."""

_SCALES = tuple(2 ** (step / 3) for step in range(-4, 5))  # 0.4 … 2.5
_SLACK = 0.15  # fraction of the best scale's gain that a scale nearer to 1 may lack
_TOLERANCE = 1.1  # or: factor by which its distance may exceed the smallest one
_CLEARLY_CLOSER = 0.7  # a scale is used if its distance is below this fraction of that of scale 1
_SHARE = 0.5  # of the lab's statistics, where they can be used
_VIEW_ZOOMS = (0.8, 1.25)  # of the views whose predictions are compared
_VIEW_JITTER = 0.6
_SURE = 0.8  # probability of a class in every view
_MAX_OVERTURNED = 0.1  # of the foreground
_MAX_CONSISTENCY_LOSS = 0.05
_MAX_CHANGE = 2.0  # factor of the foreground
_SIDE = 384  # pixels, of the network's input at each scale

Image = npt.NDArray[np.uint8]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DomainShift:
    """Difference of a target lab to the source labs.

    Attributes:
        zoom: Factor that enlarges the lab's images to the scale of the source labs.
        statistics: Batch-norm statistics of the network on the lab's images.
        zoomed_statistics: Batch-norm statistics on the images enlarged by ``zoom``.
        share: Fraction of the lab's statistics in those that the network uses for it: 0.5, or 0 where they do
            not fit.
    """

    zoom: float
    statistics: NormStatistics
    zoomed_statistics: NormStatistics
    share: float = _SHARE


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
    source, target = evenly_spaced(source, SHIFT_IMAGES), evenly_spaced(target, SHIFT_IMAGES)
    native = _measure(network, target, 1.0)
    zoom, zoomed = 1.0, native
    if search_scale:
        reference = _measure(network, source, 1.0)
        measured = {1.0: native}
        for scale in _SCALES:
            large = [image for image in target if min(image.shape[:2]) * scale >= _min_side(network)]
            if large and scale != 1:
                measured[scale] = _measure(network, large, scale)
        distances = {scale: statistics_distance(reference, each) for scale, each in measured.items()}
        zoom = modest_scale(distances)
        zoomed = measured[zoom]
    share = _usable_share(network, list(at_scale(network, target, zoom)), zoomed)
    _log.info("Scale %.2f, share of the lab's normalization statistics %.2f", zoom, share)
    return DomainShift(zoom, native, zoomed, share)


def mixed_network(network: PyramidSegmenter, statistics: NormStatistics, share: float) -> PyramidSegmenter:
    """Copy a network, with other batch-norm statistics mixed into its own.

    Args:
        network: Not changed.
        statistics: The other statistics.
        share: Fraction of the other statistics, 0..1.
    """
    mixed = copy.deepcopy(network).eval()
    write_statistics(mixed, mix_statistics(read_statistics(network), statistics, share))
    return mixed


class ViewPredictions(NamedTuple):
    """Predictions of a network on images, and their agreement with those on changed views of the images.

    Attributes:
        masks: Most probable class of each pixel of an image, (H, W) each.
        sure: Whether that class has a probability above 0.8 in every view, (H, W) each.
        consistency: Dice of the predictions on images and views, 0..1, mean over the predicted foreground classes; NaN
            if none is predicted. Pixels are counted over all images, so that images without foreground have no weight,
            and classes count equally, so that it does not depend on the class balance as a fraction of equal pixels
            does.
        confidence: Mean probability of the predicted class over all pixels predicted as foreground, 0..1; NaN if there
            is none.
    """

    masks: tuple[Tensor, ...]
    sure: tuple[Tensor, ...]
    consistency: float
    confidence: float


def predict_views(network: PyramidSegmenter, batches: Sequence[Tensor]) -> ViewPredictions:
    """Predict images and views of them: enlarged, reduced, rotated and recolored.

    Args:
        network: The network.
        batches: Images at the network's scale, on its device.

    Shape:
        batches (1, 3, H, W), 0..1
    """
    generator = torch.Generator().manual_seed(0)
    masks, sure, confidences = [], [], []
    both, total = (torch.zeros(len(network.config.classes)) for _ in range(2))
    for batch in batches:
        recolored = jitter_color(batch.cpu(), _VIEW_JITTER, generator).to(batch.device)
        views = [predict_at(network, batch, zoom)[0] for zoom in (1.0, *_VIEW_ZOOMS)]
        views.append(torch.rot90(predict_at(network, torch.rot90(batch, 1, (2, 3)), 1.0), -1, (2, 3))[0])
        views.append(predict_at(network, recolored, 1.0)[0])
        mask, *others = (view.argmax(0) for view in views)
        masks.append(mask)
        confidences.append(views[0].amax(0)[mask > 0])
        sure.append(torch.stack(views).amin(0).amax(0) > _SURE)
        for label in range(1, len(both)):
            chosen = mask == label
            for other in others:
                both[label] += float((chosen & (other == label)).sum())
                total[label] += float(chosen.sum() + (other == label).sum())
    known = total > 0
    consistency = float((2 * both[known] / total[known]).mean()) if known.any() else math.nan
    return ViewPredictions(tuple(masks), tuple(sure), consistency, float(torch.cat(confidences).mean()))


def _usable_share(network: PyramidSegmenter, batches: Sequence[Tensor], statistics: NormStatistics) -> float:
    """Share of a lab's statistics to use: half, or 0 where the network would be clearly less consistent with them, or
    less confident of the foreground, or would predict far more or less of it, or where it was sure that there is none.
    """
    before = predict_views(network, batches)
    after = predict_views(mixed_network(network, statistics, _SHARE), batches)
    changed, overturned = _foreground_change(before, after)
    usable = (
        after.consistency >= before.consistency - _MAX_CONSISTENCY_LOSS  # False for NaN
        and after.confidence >= before.confidence
        and 1 / _MAX_CHANGE <= changed <= _MAX_CHANGE
        and overturned <= _MAX_OVERTURNED
    )
    return _SHARE if usable else 0.0


def _foreground_change(before: ViewPredictions, after: ViewPredictions) -> tuple[float, float]:
    """Factor by which the foreground grows, and the fraction of it that surely was of another class before."""
    old_pixels = sum(int((mask > 0).sum()) for mask in before.masks)
    pixels = sum(int((mask > 0).sum()) for mask in after.masks)
    changed = sum(
        int(((new > 0) & sure & (old != new)).sum())
        for old, sure, new in zip(before.masks, before.sure, after.masks, strict=True)
    )
    return pixels / max(1, old_pixels), changed / max(1, pixels)


def modest_scale(distances: Mapping[float, float]) -> float:
    """Scale nearest to 1 among those whose distance is almost as small as the smallest; 1 if none is clearly closer."""
    least, present = min(distances.values()), distances[1.0]
    if least > _CLEARLY_CLOSER * present:
        return 1.0
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
    return outputs_at(network, batch, zoom)[:, : len(network.config.classes)]


@torch.inference_mode()
def outputs_at(network: PyramidSegmenter, batch: Tensor, zoom: float) -> Tensor:
    """Class probabilities and maps of the head, as `predict_at`: (B, 3, H, W) → (B, K + M, H, W)."""
    height, width = batch.shape[-2:]
    zoomed = resize(batch, max(1, round(height * zoom)), max(1, round(width * zoom)))
    return resize(network.head.outputs(network(zoomed)), height, width)


def center_crop(pixels: Image, side: int) -> Image:
    """Square center crop of an image or a mask, smaller where the image is."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _min_side(network: PyramidSegmenter) -> int:
    """Smallest side of an image in pixels: below it the deepest features are one pixel, which has no variance."""
    return int(2 * network.stride)


def at_scale(network: PyramidSegmenter, images: Sequence[Image], zoom: float) -> Iterator[Tensor]:
    """Center crops of images, enlarged, on the network's device: (H, W, 3), 0..255 → (1, 3, H, W), 0..1, each."""
    device = next(network.parameters()).device
    for image in images:
        batch = to_batch(center_crop(image, round(_SIDE / zoom)), device)
        height, width = (max(_min_side(network), round(length * zoom)) for length in batch.shape[-2:])
        yield resize(batch, height, width)


def _measure(network: PyramidSegmenter, images: Sequence[Image], zoom: float) -> NormStatistics:
    return measure_statistics(network, at_scale(network, images, zoom))
