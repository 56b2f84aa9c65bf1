"""Images with reference masks, and how well an engine does on them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr, stdtrit

from microseg.annotations.index_masks import read_mask
from microseg.datasets.checks import check_pair
from microseg.datasets.dataset import LabDataset, Split
from microseg.datasets.lab import LabMetadata, image_key, image_name
from microseg.errors import LabError
from microseg.evaluation.boundary import boundary_dice
from microseg.evaluation.overlap import dice
from microseg.registry.gate import ConfidenceInterval
from microseg.slides.images import IMAGE_SUFFIXES, read_image

__all__ = [
    "Reference",
    "Segment",
    "bootstrap_interval",
    "held_out_references",
    "lab_references",
    "mean_scores",
    "score",
]

Segment = Callable[[npt.NDArray[np.uint8], float | None], npt.NDArray[np.float32]]
"""RGB image (H, W, 3) and its microns per pixel → class probabilities (K, H, W)."""


@dataclass(frozen=True)
class Reference:
    """An image and its reference mask.

    Attributes:
        name: of the image.
        image: its file.
        mask: the file of its class indices.
        mpp: microns per pixel; None when unknown.
        slide: the slide or patient that it is of; empty where that is not known.
    """

    name: str
    image: Path
    mask: Path
    mpp: float | None
    slide: str = ""


def lab_references(lab: LabDataset, split: Split) -> tuple[Reference, ...]:
    """The labelled images of one split of a lab's dataset."""
    return tuple(
        Reference(Path(row.image).stem, lab.image_path(row), lab.mask_path(row), row.mpp, row.group)
        for row in lab.select(split=split, labelled=True)
    )


def held_out_references(folder: Path, card: LabMetadata) -> tuple[Reference, ...]:
    """The images and masks that a lab keeps aside to report on, in ``<folder>/test``; none where there are none.

    They are in no dataset, so no training can reach them.

    Args:
        folder: the lab's folder, as it was delivered.
        card: what the lab says of itself.

    Raises:
        LabError: when an image there has no mask of the same name, or either cannot be used.
    """
    images, masks = folder / "test" / "images", folder / "test" / "masks"
    if not (images.is_dir() and masks.is_dir()):
        return ()
    mask_files = {image_key(image_name(path)): path for path in _image_files(masks)}
    references = []
    for path in _image_files(images):
        name = image_name(path)
        if image_key(name) not in mask_files:
            raise LabError(
                f"{path}: expected a mask of the same name in {masks}, found none. Add it, or take the image away."
            )
        mask = mask_files[image_key(name)]
        checked = check_pair(path, mask, card.classes)
        if isinstance(checked, dict):
            file, reason = next(iter(checked.items()))
            raise LabError(f"{file}: {reason.removeprefix(f'{file}: ')}")
        references.append(Reference(name, path, mask, checked.mpp or card.mpp))
    return tuple(references)


def _image_files(folder: Path) -> list[Path]:
    """The images in a folder, without what operating systems hide beside them."""
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
) -> pd.DataFrame:
    """Dice and boundary Dice of every image.

    Args:
        segment: the engine's probabilities.
        references: what to compare with.
        classes: names of the classes, the background first.
        on_image: called with each image's name when it is done.

    Returns:
        One row an image: ``image``, ``dice`` (mean over the foreground classes), ``boundary_dice`` (2 px), and
        ``dice_<class>``.
        A class that neither mask has is nan.
    """
    rows: list[dict[str, object]] = []
    for reference in references:
        probabilities = segment(read_image(reference.image), reference.mpp)
        prediction = probabilities.argmax(0).astype(np.uint8)
        truth = read_mask(reference.mask)
        overlap = dice(prediction, truth, len(classes))
        borders = [boundary_dice(prediction == k, truth == k, ignored=truth == 255) for k in range(1, len(classes))]
        rows.append(
            {"image": reference.name, "dice": _mean(overlap[1:]), "boundary_dice": _mean(np.array(borders))}
            | {f"dice_{name}": float(value) for name, value in zip(classes[1:], overlap[1:], strict=True)}
        )
        on_image(reference.name)
    columns = ["image", "dice", "boundary_dice", *(f"dice_{name}" for name in classes[1:])]
    return pd.DataFrame(rows, columns=columns)


def mean_scores(table: pd.DataFrame) -> Mapping[str, float]:
    """The mean of each column over the images; ``dice`` is the mean over the classes of their means.

    That order is the one to compare with: an image that lacks a class then weighs on the other classes only.
    """
    means = {str(name): float(value) for name, value in table.drop(columns="image").mean().items()}
    per_class = [value for name, value in means.items() if name.startswith("dice_")]
    return means | {"dice": _mean(np.array(per_class))}


def bootstrap_interval(
    values: npt.NDArray[np.float64],
    slides: Sequence[str] | None = None,
    *,
    seed: int = 0,
    share: float = 0.95,
    draws: int = 2000,
) -> ConfidenceInterval:
    """Mean with its bootstrap interval over images, or over slides.

    The percentiles are moved outwards as Student's t and the bias of the variance ask for: of a few values the plain
    ones are too narrow. Of three values they are the smallest and the largest mean that was drawn.

    Args:
        values: one an image; nan are left out.
        slides: of each image; those of one slide are drawn together. None: each image by itself.
        seed: of the draws.
        share: of repetitions in which the interval holds the truth, 0..1.
        draws: number of bootstrap samples.

    Reference:
        Hesterberg, "What teachers should know about the bootstrap", 2015: the expanded percentile interval.
    """
    there = np.isfinite(values)
    if not there.any():
        return ConfidenceInterval(float("nan"), float("nan"), float("nan"))
    known = values[there]
    units = np.arange(known.size) if slides is None else np.unique(np.array(slides)[there], return_inverse=True)[1]
    sums, counts = np.bincount(units, known), np.bincount(units)  # (U,)
    picks = np.random.default_rng(seed).integers(counts.size, size=(draws, counts.size))
    means = sums[picks].sum(1) / counts[picks].sum(1)  # (draws,)
    low, high = np.quantile(means, [tail := _tail(counts.size, share), 1 - tail])
    return ConfidenceInterval(float(known.mean()), float(low), float(high))


def _tail(units: int, share: float) -> float:
    """Share of the bootstrap means to leave out at each end."""
    if units < 2:
        return 0.0
    reach = stdtrit(units - 1, (1 + share) / 2) * np.sqrt(units / (units - 1))
    return float(ndtr(-reach))


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
