"""Images with reference masks, and the scores of a segmentation on them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr, stdtrit

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.annotations.instance_masks import INSTANCES, read_instances
from microseg.datasets.checks import check_pair
from microseg.datasets.dataset import LabDataset
from microseg.datasets.image_table import image_key, image_name
from microseg.datasets.lab import LabMetadata
from microseg.datasets.manifest import Split
from microseg.errors import LabError
from microseg.evaluation.detection import count_error, detection_f1, mean_detection_f1, panoptic_quality
from microseg.evaluation.objects import ObjectOverlap
from microseg.evaluation.overlap import boundary_dice, dice
from microseg.models.separation import class_mask
from microseg.outputs.objects import label_objects
from microseg.registry.evidence import ConfidenceInterval
from microseg.slides.images import IMAGE_SUFFIXES
from microseg.slides.region import ImageSource, read_source

__all__ = [
    "LabelObjects",
    "Reference",
    "Segment",
    "bootstrap_interval",
    "held_out_references",
    "lab_references",
    "mean_scores",
    "score",
]

_OBJECT_METRICS: Mapping[str, Callable[[ObjectOverlap], float]] = {
    "object_f1": ObjectOverlap.f1,
    "object_dice": ObjectOverlap.dice,
    "aji": ObjectOverlap.aggregated_jaccard,
    "f1_at_50": detection_f1,
    "mean_f1": mean_detection_f1,
    "panoptic_quality": panoptic_quality,
    "count_error": count_error,
}

Segment = Callable[[npt.NDArray[np.uint8], float | None], npt.NDArray[np.float32]]
"""RGB image (H, W, 3) and its microns per pixel → class probabilities (K, H, W); maps of the network may follow."""

LabelObjects = Callable[[npt.NDArray[np.float32], float | None], npt.NDArray[np.int32]]
"""What `Segment` returned for an image, and its microns per pixel → number of the object at each pixel (H, W)."""


@dataclass(frozen=True)
class Reference:
    """An image and its reference mask.

    Args:
        name: Name of the image.
        image: Image file, or region of a slide.
        mask: File of its class indices.
        mpp: Pixel size in microns per pixel; None if unknown.
        slide: Slide or patient; empty if unknown.
        instances: File of its numbered objects; None: objects are the connected regions of the mask.
    """

    name: str
    image: ImageSource
    mask: Path
    mpp: float | None
    slide: str = ""
    instances: Path | None = None


def lab_references(lab: LabDataset, split: Split) -> tuple[Reference, ...]:
    """Return the labelled images of one split of a lab's dataset."""
    return tuple(
        Reference(row.name, lab.image(row), lab.mask_path(row), row.mpp, row.group, lab.instances_path(row))
        for row in lab.select(split=split, labelled=True)
    )


def held_out_references(folder: Path, card: LabMetadata) -> tuple[Reference, ...]:
    """Return the held-out test images of a lab, their masks and numbered objects, in ``<folder>/test``, if any.

    They are in no dataset, so no training can use them.

    Args:
        folder: The lab's incoming folder.
        card: The lab's metadata.

    Raises:
        LabError: An image has no mask of the same name, or one of them cannot be used.
    """
    images, masks = folder / "test" / "images", folder / "test" / "masks"
    if not (images.is_dir() and masks.is_dir()):
        return ()
    if card.masks != "index":
        raise LabError(f"{masks}: expected class indices, got masks: {card.masks}. Save them as class indices.")
    if card.channels:
        raise LabError(f"{images}: expected gray or RGB images, got some with channels. Remove test/ from the folder.")
    mask_files = {image_key(image_name(path)): path for path in _image_files(masks)}
    instances = folder / "test" / INSTANCES
    numbered = {image_key(image_name(path)): path for path in _image_files(instances)} if instances.is_dir() else {}
    references = []
    for path in _image_files(images):
        name = image_name(path)
        if image_key(name) not in mask_files:
            raise LabError(
                f"{path}: expected a mask of the same name in {masks}, found none. Add it, or remove the image."
            )
        mask = mask_files[image_key(name)]
        checked = check_pair(path, mask, card.label_classes)
        if isinstance(checked, dict):
            file, reason = next(iter(checked.items()))
            raise LabError(f"{file}: {reason.removeprefix(f'{file}: ')}")
        numbers = numbered.get(image_key(name))
        references.append(Reference(name, path, mask, checked.mpp or card.mpp, instances=numbers))
    return tuple(references)


def _image_files(folder: Path) -> list[Path]:
    """Return the images in a folder, without hidden files."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith((".", "~$"))
    ]


def score(
    segment: Segment,
    references: Iterable[Reference],
    classes: tuple[str, ...],
    on_image: Callable[[str], None] = lambda _name: None,
    *,
    objects: bool = False,
    label: LabelObjects | None = None,
) -> pd.DataFrame:
    """Score the segmentation of every image against its reference mask.

    Args:
        segment: Computes the class probabilities of an image.
        references: The images and masks.
        classes: Names of the classes, background first.
        on_image: Called with the name of each scored image.
        objects: Whether to compute object metrics, too: of numbered objects where the reference has them, else of the
            connected regions of each class.
        label: Separates the predicted objects; None: they are the connected regions of each class.

    Returns:
        One row per image: ``image``, ``dice`` (mean over the foreground classes), ``boundary_dice`` (2 px) and
        ``dice_<class>``; with ``objects`` also ``object_f1``, ``object_dice`` and ``aji`` (see `ObjectOverlap`),
        ``f1_at_50``, ``mean_f1``, ``panoptic_quality`` and ``count_error`` (see `microseg.evaluation.detection`), which
        are means over the foreground classes, and each of them as ``<metric>_<class>``. NaN for a class that neither
        mask has.
    """
    names = classes[1:]
    columns = ["image", "dice", "boundary_dice", *(f"dice_{name}" for name in names)]
    if objects:
        columns += [*_OBJECT_METRICS, *(f"{metric}_{name}" for metric in _OBJECT_METRICS for name in names)]
    rows: list[dict[str, object]] = []
    for reference in references:
        outputs = segment(read_source(reference.image), reference.mpp)
        prediction = class_mask(outputs[: len(classes)])
        truth = read_mask(reference.mask)
        ignored = truth == IGNORE
        overlap = dice(prediction, truth, len(classes))[1:]
        boundaries = [boundary_dice(prediction == k, truth == k, ignored=ignored) for k in range(1, len(classes))]
        row: dict[str, object] = {"image": reference.name, "dice": _mean(overlap)}
        row["boundary_dice"] = _mean(np.array(boundaries))
        row |= {f"dice_{name}": float(value) for name, value in zip(names, overlap, strict=True)}
        if objects:
            found = None if label is None else label(outputs, reference.mpp)
            annotated = None if reference.instances is None else read_instances(reference.instances)
            if annotated is not None and annotated.shape != truth.shape:
                raise LabError(
                    f"{reference.instances}: expected the size of its mask {truth.shape}, got {annotated.shape}."
                )
            row |= _object_scores(
                np.where(ignored, IGNORE, prediction).astype(np.uint8), truth, names, found, annotated
            )
        rows.append(row)
        on_image(reference.name)
    return pd.DataFrame(rows, columns=columns)


def _object_scores(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    names: Sequence[str],
    found: npt.NDArray[np.int32] | None = None,
    annotated: npt.NDArray[np.int32] | None = None,
) -> dict[str, float]:
    """Object metrics of each class, and their means; objects are connected regions where they are not given."""
    found = label_objects(prediction) if found is None else found
    annotated = label_objects(truth) if annotated is None else annotated
    scores: dict[str, float] = {}
    for number, name in enumerate(names, 1):
        ours, theirs = np.where(prediction == number, found, 0), np.where(truth == number, annotated, 0)
        overlap = ObjectOverlap.between(ours, theirs)
        scores |= {f"{metric}_{name}": measure(overlap) for metric, measure in _OBJECT_METRICS.items()}
    means = {metric: _mean(np.array([scores[f"{metric}_{name}"] for name in names])) for metric in _OBJECT_METRICS}
    return means | scores


def mean_scores(table: pd.DataFrame) -> Mapping[str, float]:
    """Return the mean of each column over the images; means over classes are taken last.

    ``dice``, for example, is the mean over the classes of their means, so that an image without a class affects the
    other classes only.
    """
    means = {str(name): float(value) for name, value in table.drop(columns="image").mean().items()}
    for metric in ("dice", *_OBJECT_METRICS):
        if metric in means:
            means[metric] = _mean(np.array([v for name, v in means.items() if name.startswith(f"{metric}_")]))
    return means


def bootstrap_interval(
    values: npt.NDArray[np.float64],
    slides: Sequence[str] | None = None,
    *,
    seed: int = 0,
    share: float = 0.95,
    draws: int = 2000,
) -> ConfidenceInterval:
    """Return the mean with its bootstrap confidence interval over images, or over slides.

    The percentiles are widened for Student's t and the bias of the variance: of a few values the plain ones are too
    narrow. Of three values they are the smallest and the largest mean drawn.

    Args:
        values: One per image; NaN are left out.
        slides: Slide of each image; those of one slide are drawn together. None: each image is drawn separately.
        seed: Seed of the draws.
        share: Confidence level, 0..1.
        draws: Number of bootstrap samples.

    Reference:
        Hesterberg, "What teachers should know about the bootstrap", 2015: the expanded percentile interval.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return ConfidenceInterval(float("nan"), float("nan"), float("nan"))
    known = values[finite]
    units = np.arange(known.size) if slides is None else np.unique(np.array(slides)[finite], return_inverse=True)[1]
    sums, counts = np.bincount(units, known), np.bincount(units)  # (U,)
    picks = np.random.default_rng(seed).integers(counts.size, size=(draws, counts.size))
    means = sums[picks].sum(1) / counts[picks].sum(1)  # (draws,)
    low, high = np.quantile(means, [tail := _tail(counts.size, share), 1 - tail])
    return ConfidenceInterval(float(known.mean()), float(low), float(high))


def _tail(units: int, share: float) -> float:
    """Fraction of the bootstrap means to leave out at each end."""
    if units < 2:
        return 0.0
    factor = stdtrit(units - 1, (1 + share) / 2) * np.sqrt(units / (units - 1))
    return float(ndtr(-factor))


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
