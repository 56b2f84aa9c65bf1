"""What a model knows, learnt from its labs' images, and how far another lab's images lie from that."""

from collections.abc import Callable, Sequence

import numpy as np

from microseg.data.appearance import APPEARANCE, describe_image
from microseg.data.dataset import Lab
from microseg.data.images import read_image
from microseg.data.scale import model_zoom
from microseg.evaluation.label_free import TargetImage, lab_targets
from microseg.inference import image_drift
from microseg.metrics import MIN_KNOWN, KnownImages, learn_lab

__all__ = ["image_drifts", "learn_known"]

_IMAGES = 200  # of a lab, spread evenly


def learn_known(
    labs: Sequence[Lab], mpp: float | None, on_image: Callable[[str], None] = lambda _name: None
) -> KnownImages:
    """Learn what the images of some labs look like; masks are not read.

    Args:
        labs: that a model was trained on or adapted to. One with fewer than five images that show tissue is left out.
        mpp: the model's microns per pixel; None if unknown.
        on_image: called with each image's name when it is done.
    """
    known = {}
    for lab in labs:
        figures, groups = [], []
        for target in lab_targets(lab, _IMAGES):
            described = describe_image(read_image(target.image), model_zoom(target.mpp, mpp))
            if described is not None:
                figures.append(described)
                groups.append(target.slide or target.name)
            on_image(target.name)
        if len(figures) >= MIN_KNOWN:
            known[lab.card.lab] = learn_lab(np.array(figures), groups)
    return KnownImages(APPEARANCE, known)


def image_drifts(known: KnownImages, images: Sequence[TargetImage], mpp: float | None) -> list[float]:
    """Drift of each image; nan where there is no telling.

    Args:
        known: what a model knows. Images that it was learnt from lie a little nearer than new ones of their lab.
        images: to compare with that.
        mpp: the model's microns per pixel; None if unknown.
    """
    drifts = [image_drift(known, read_image(target.image), model_zoom(target.mpp, mpp)) for target in images]
    return [np.nan if drift is None else drift for drift in drifts]
