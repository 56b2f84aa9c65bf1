"""The reference distribution of labs, and the out-of-distribution scores of another lab's images."""

from collections.abc import Callable, Sequence

import numpy as np

from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.datasets.dataset import LabDataset
from microseg.evaluation.label_free import TargetImage, lab_targets
from microseg.inference.out_of_distribution import image_ood_score
from microseg.models.reference_distribution import MIN_REFERENCE_IMAGES, ReferenceDistribution, fit_lab_distribution
from microseg.slides.images import read_image
from microseg.slides.pixel_size import model_zoom

__all__ = ["fit_reference_distribution", "ood_scores"]

_IMAGES = 200  # largest number of images of a lab, spread evenly


def fit_reference_distribution(
    labs: Sequence[LabDataset], mpp: float | None, on_image: Callable[[str], None] = lambda _name: None
) -> ReferenceDistribution:
    """Fit the reference distribution of labs; masks are not read.

    Args:
        labs: The labs that a model was trained on or adapted to. One with fewer than five images of tissue is left out.
        mpp: The model's pixel size in microns per pixel; None if unknown.
        on_image: Called with the name of each image.
    """
    reference = {}
    for lab in labs:
        features, groups = [], []
        for target in lab_targets(lab, _IMAGES):
            described = image_features(read_image(target.image), model_zoom(target.mpp, mpp))
            if described is not None:
                features.append(described)
                groups.append(target.slide or target.name)
            on_image(target.name)
        if len(features) >= MIN_REFERENCE_IMAGES:
            reference[lab.metadata.lab] = fit_lab_distribution(np.array(features), groups)
    return ReferenceDistribution(APPEARANCE_FEATURES, reference)


def ood_scores(reference: ReferenceDistribution, images: Sequence[TargetImage], mpp: float | None) -> list[float]:
    """Return the out-of-distribution score of each image; NaN for an image without tissue.

    Args:
        reference: A model's reference distribution. Images that it was fitted to have slightly lower scores than new
            images of their lab.
        images: The images.
        mpp: The model's pixel size in microns per pixel; None if unknown.
    """
    scores = [image_ood_score(reference, read_image(target.image), model_zoom(target.mpp, mpp)) for target in images]
    return [np.nan if value is None else value for value in scores]
