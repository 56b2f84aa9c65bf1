"""Criteria of a segmentation of a target lab that do not share the bias of an adaptation.

Statistics of a network's layers carry the class balance of a lab's images; criteria that a wrong balance also improves
cannot see that it is wrong. These use features of pixels that no network computes. They are measured on center crops of
a few images, which are prepared once for all networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import evenly_spaced
from microseg.evaluation.label_free import lab_targets
from microseg.evaluation.pixel_features import PIXEL_STRIDE, pixel_features
from microseg.evaluation.references import Segment
from microseg.evaluation.reverse_validation import (
    LabelledPixels,
    forward_validation,
)
from microseg.models.separation import class_mask
from microseg.slides.modality import Modality, lab_modality
from microseg.slides.pixel_size import model_zoom
from microseg.slides.region import read_source
from microseg.training.adaptation.domain_shift import center_crop

__all__ = ["PixelCriteria", "labelled_pixels"]

_IMAGES = 12  # largest number of images of a lab, spread evenly
_SIDE = 512  # pixels of a crop, at the model's scale

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PixelCriteria:
    """Criteria of segmentations of one target lab.

    Args:
        images: Crops of the target lab's images at the model's scale, (H, W, 3) each.
        mpp: Microns per pixel of these crops; None if unknown.
        modality: What the images of the source labs and of the target lab have in common.
        source: Pixels of the source labs with their true classes.
        classes: Number of classes.
    """

    images: tuple[Pixels, ...]
    mpp: float | None
    modality: Modality
    source: LabelledPixels
    classes: int

    @classmethod
    def of(cls, source: Sequence[LabDataset], target: LabDataset, mpp: float | None) -> "PixelCriteria | None":
        """Prepare the crops.

        Args:
            source: Source labs; their training images and masks are used.
            target: The target lab.
            mpp: Microns per pixel of the model; None if unknown.

        Returns:
            The criteria; None without labelled source images or without target images.
        """
        images = [_crop(read_source(it.image), model_zoom(it.mpp, mpp)) for it in lab_targets(target, _IMAGES)]
        pairs = [
            (
                _crop(read_source(lab.image(row)), model_zoom(row.mpp, mpp)),
                _crop(read_mask(lab.mask_path(row)), model_zoom(row.mpp, mpp)),
            )
            for lab in source
            for row in evenly_spaced(lab.select(split="train", labelled=True), _IMAGES)
        ]
        if not images or not pairs:
            return None
        kinds = lab_modality(images), lab_modality(image for image, _ in pairs)
        modality = next((kind for kind in kinds if not kind.has_stain_colors), Modality.STAINED)
        pixels = labelled_pixels([pixel_features(image, modality) for image, _ in pairs], [mask for _, mask in pairs])
        return cls(tuple(images), mpp, modality, pixels, len(target.metadata.classes))

    def measure(self, segment: Segment) -> dict[str, float]:
        """Measure a network.

        Args:
            segment: Computes the class probabilities of an image.

        Returns:
            ``forward_validation``: See that function, 0..1; left out if it is unknown.
        """
        masks = [class_mask(segment(image, self.mpp)) for image in self.images]
        value = forward_validation(self.source, labelled_pixels(self._features, masks), self.classes)
        return {"forward_validation": value} if np.isfinite(value) else {}

    @cached_property
    def _features(self) -> list[npt.NDArray[np.float32]]:
        return [pixel_features(image, self.modality) for image in self.images]


def labelled_pixels(features: Sequence[npt.NDArray[np.float32]], masks: Sequence[Pixels]) -> LabelledPixels:
    """Pixels of a lab whose features are computed.

    Args:
        features: Features of images, (h, w, D) each; see `pixel_features`.
        masks: Their class indices, (H, W) each.
    """
    labels = [mask[::PIXEL_STRIDE, ::PIXEL_STRIDE].ravel() for mask in masks]
    return LabelledPixels(np.concatenate([it.reshape(-1, it.shape[-1]) for it in features]), np.concatenate(labels))


def _crop(pixels: Pixels, zoom: float) -> Pixels:
    """Center crop of an image or a mask, enlarged by ``zoom``."""
    side = max(1, round(_SIDE / zoom))
    cut = np.ascontiguousarray(center_crop(pixels, side))
    if zoom == 1:
        return cut
    size = max(1, round(cut.shape[1] * zoom)), max(1, round(cut.shape[0] * zoom))
    method = Image.Resampling.NEAREST if cut.ndim == 2 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(cut).resize(size, method))
