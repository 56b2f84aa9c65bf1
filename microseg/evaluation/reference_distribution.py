"""What a model knows, learnt from its labs' images, and how far another lab's images lie from that."""

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

_IMAGES = 200  # of a lab, spread evenly


def fit_reference_distribution(
    labs: Sequence[LabDataset], mpp: float | None, on_image: Callable[[str], None] = lambda _name: None
) -> ReferenceDistribution:
    """Learn what the images of some labs look like; masks are not read.

    Args:
        labs: that a model was trained on or adapted to. One with fewer than five images that show tissue is left out.
        mpp: the model's microns per pixel; None if unknown.
        on_image: called with each image's name when it is done.
    """
    reference = {}
    for lab in labs:
        figures, groups = [], []
        for target in lab_targets(lab, _IMAGES):
            described = image_features(read_image(target.image), model_zoom(target.mpp, mpp))
            if described is not None:
                figures.append(described)
                groups.append(target.slide or target.name)
            on_image(target.name)
        if len(figures) >= MIN_REFERENCE_IMAGES:
            reference[lab.metadata.lab] = fit_lab_distribution(np.array(figures), groups)
    return ReferenceDistribution(APPEARANCE_FEATURES, reference)


def ood_scores(reference: ReferenceDistribution, images: Sequence[TargetImage], mpp: float | None) -> list[float]:
    """Drift of each image; nan where there is no telling.

    Args:
        reference: what a model knows. Images that it was learnt from lie a little nearer than new ones of their lab.
        images: to compare with that.
        mpp: the model's microns per pixel; None if unknown.
    """
    scores = [image_ood_score(reference, read_image(target.image), model_zoom(target.mpp, mpp)) for target in images]
    return [np.nan if ood_score is None else ood_score for ood_score in scores]
