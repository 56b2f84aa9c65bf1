"""Label-free evaluation of a segmenter on the images of a target lab."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from microseg.annotations.index_masks import read_mask
from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import step_generator
from microseg.evaluation.criteria import class_shares, cohen_kappa, prediction_entropy, stain_explained_variance
from microseg.evaluation.references import Segment
from microseg.inference.out_of_distribution import image_ood_score
from microseg.models.reference_distribution import MIN_REFERENCE_IMAGES, ReferenceDistribution, fit_lab_distribution
from microseg.models.separation import class_mask
from microseg.slides.modality import Modality, lab_modality
from microseg.slides.pixel_size import model_zoom
from microseg.slides.region import ImageSource, read_source
from microseg.training.color_augmentation import jitter_color

__all__ = [
    "TargetImage",
    "augmented_views",
    "expected_foreground_share",
    "fit_reference_distribution",
    "lab_targets",
    "label_free_scores",
    "ood_scores",
]

_REFERENCE_IMAGES = 200  # largest number of images of a lab in a reference distribution
_JITTER = 0.6  # strength of the color changes
_LARGEST, _WINDOW, _POSITIONS = 4_000_000, 1024, (0.25, 0.75)  # pixels; side; places within the free range
_MODALITY_IMAGES = 8  # that state what the images of a lab are


@dataclass(frozen=True)
class TargetImage:
    """An image of the target lab.

    Args:
        name: Name of the image.
        image: Image file, or region of a slide.
        mpp: Pixel size in microns per pixel; None if unknown.
        slide: Slide or patient.
    """

    name: str
    image: ImageSource
    mpp: float | None
    slide: str = ""


def lab_targets(lab: LabDataset, limit: int | None = None) -> tuple[TargetImage, ...]:
    """Return a lab's images, or at most ``limit`` of them; see `LabDataset.spread`."""
    rows = lab.rows if limit is None else lab.spread(limit)
    return tuple(TargetImage(row.name, lab.image(row), row.mpp, row.group) for row in rows)


def label_free_scores(
    segment: Segment,
    images: Sequence[TargetImage],
    classes: int,
    on_image: Callable[[str], None] = lambda _name: None,
    on_entropy: Callable[[str, float], object] = lambda _name, _entropy: None,
    *,
    views: int = 2,
) -> dict[str, float]:
    """Measure label-free criteria, mean over images; an image above 4 megapixels counts with four windows of 1024².

    Args:
        segment: Computes the class probabilities of an image.
        images: Images of the target lab.
        classes: Number of classes.
        on_image: Called with the name of each evaluated image.
        on_entropy: Called with the name of each image, and the entropy of the predictions on it.
        views: Number of augmented views of each image for ``augmentation_consistency``; 0 leaves it out.

    Returns:
        ``stain_explained_variance``: See that function, 0..1, for what most of the images are.
        ``augmentation_consistency``: Cohen's kappa of the prediction with those on recolored, rotated and flipped
        views, mapped back, 0..1; 0 for a network that predicts the same single class for every image. ``entropy``: Of
        the predictions, 0..1. ``foreground_share``: Area
        fraction of the foreground classes, 0..1. NaN if there are no images.
    """
    rows = []
    modality = lab_modality(read_source(it.image) for it in images[:: -(-len(images) // _MODALITY_IMAGES) or 1])
    for number, target in enumerate(images):
        parts = []
        for image in _windows(read_source(target.image)):
            probabilities = segment(image, target.mpp)
            mask = class_mask(probabilities)
            part = {
                "stain_explained_variance": stain_explained_variance(image, mask, classes, modality),
                "entropy": prediction_entropy(probabilities),
                "foreground_share": 1 - float(class_shares(mask, classes)[0]),
            }
            if views:
                augmented = augmented_views(image, number, views, modality)
                masks = (restore(class_mask(segment(view, target.mpp))) for view, restore in augmented)
                part["augmentation_consistency"] = _mean([cohen_kappa(mask, it, classes) for it in masks])
            parts.append(part)
        row = {name: _mean([part[name] for part in parts]) for name in parts[0]}
        rows.append(row)
        on_entropy(target.name, row["entropy"])
        on_image(target.name)
    consistency = ("augmentation_consistency",) if views else ()
    names = ("stain_explained_variance", *consistency, "entropy", "foreground_share")
    scores = {name: _mean([row[name] for row in rows]) for name in names}
    collapsed = views and rows and np.isnan(scores["augmentation_consistency"])
    return scores | ({"augmentation_consistency": 0.0} if collapsed else {})


def _windows(image: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """The image, or windows of a large one, in the middle of its quarters."""
    height, width = image.shape[:2]
    if height * width <= _LARGEST:
        return [image]
    rows, columns = min(height, _WINDOW), min(width, _WINDOW)
    return [
        np.ascontiguousarray(image[top : top + rows, left : left + columns])
        for top in sorted({int(share * (height - rows)) for share in _POSITIONS})
        for left in sorted({int(share * (width - columns)) for share in _POSITIONS})
    ]


def expected_foreground_share(labs: Sequence[LabDataset]) -> float:
    """Return the mean foreground share of the training masks of the source labs."""
    shares = [
        1 - class_shares(read_mask(lab.mask_path(row)), len(lab.metadata.classes))[0]
        for lab in labs
        for row in lab.select(split="train", labelled=True)
    ]
    return _mean(shares)


def fit_reference_distribution(labs: Sequence[LabDataset], mpp: float | None) -> ReferenceDistribution:
    """Fit the reference distribution of labs; masks are not read.

    Args:
        labs: The labs that a model was trained on or adapted to. One with fewer than five images of tissue is left out.
        mpp: The model's pixel size in microns per pixel; None if unknown.
    """
    reference = {}
    for lab in labs:
        features, groups = [], []
        for target in lab_targets(lab, _REFERENCE_IMAGES):
            described = image_features(read_source(target.image), model_zoom(target.mpp, mpp))
            if described is not None:
                features.append(described)
                groups.append(target.slide or target.name)
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
    scores = [image_ood_score(reference, read_source(target.image), model_zoom(target.mpp, mpp)) for target in images]
    return [np.nan if value is None else value for value in scores]


def augmented_views(
    image: npt.NDArray[np.uint8], number: int, views: int, modality: Modality
) -> Iterator[tuple[npt.NDArray[np.uint8], Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]]]:
    """Recolor, rotate and flip an image.

    Args:
        image: RGB.
        number: Number of the image, which the random changes depend on.
        views: How many views to create.
        modality: What the image is: one without stain colors keeps its colors, only its intensity changes.

    Yields:
        The view, and the function that maps a mask of it back.
    """
    for view in range(views):
        yield _augment(image, number, view, modality)


def _augment(
    image: npt.NDArray[np.uint8], number: int, view: int, modality: Modality
) -> tuple[npt.NDArray[np.uint8], Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]]:
    generator = step_generator(0, number, view)
    turns, flip = 1 + view % 3, view % 2 == 1
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    changed = jitter_color(batch, _JITTER, generator)
    if not modality.has_stain_colors:
        changed = (batch + (changed - batch).mean(1, keepdim=True)).clamp(0, 1)
    colored = (changed * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    rotated = np.rot90(colored, turns)
    augmented = np.ascontiguousarray(rotated[:, ::-1] if flip else rotated)

    def restore(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(np.rot90(mask[:, ::-1] if flip else mask, -turns))

    return augmented, restore


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
