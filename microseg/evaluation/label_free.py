"""What can be known of a segmenter on a lab that sent no masks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import step_generator
from microseg.evaluation.criteria import class_shares, cohen_kappa, prediction_entropy, stain_explained_variance
from microseg.evaluation.references import Segment
from microseg.slides.images import read_image
from microseg.training.color_augmentation import jitter_color

__all__ = ["TargetImage", "expected_foreground_share", "lab_targets", "label_free_scores"]

_STRENGTH = 0.6


@dataclass(frozen=True)
class TargetImage:
    """An image of the new lab.

    Attributes:
        name: of the image.
        image: its file.
        mpp: microns per pixel; None when unknown.
        slide: the slide or patient that it is of.
    """

    name: str
    image: Path
    mpp: float | None
    slide: str = ""


def lab_targets(lab: LabDataset, limit: int | None = None) -> tuple[TargetImage, ...]:
    """A lab's images, or so many of them, spread evenly over its manifest."""
    rows = lab.rows
    if limit is not None and len(rows) > limit:
        rows = tuple(rows[int(index)] for index in np.linspace(0, len(rows) - 1, limit))
    return tuple(TargetImage(Path(row.image).stem, lab.image_path(row), row.mpp, row.group) for row in rows)


def label_free_scores(
    segment: Segment,
    images: Iterable[TargetImage],
    classes: int,
    on_image: Callable[[str], None] = lambda _name: None,
    *,
    views: int = 2,
) -> dict[str, float]:
    """Label-free evidence, mean over images.

    Args:
        segment: the engine's probabilities.
        images: of the new lab.
        classes: number of classes.
        on_image: called with each image's name when it is done.
        views: changed copies of each image to ask for ``cohen_kappa``; without any it is left out.

    Returns:
        ``separation``: share of the stain's variance that the segmentation explains, 0..1; see `class_separation`.
        ``cohen_kappa``: of the prediction with those on the same image recolored, turned and flipped, mapped back:
        Cohen's kappa, 0..1; 0 for a network that finds one and the same class in every image. ``entropy``: of the
        predictions, 0..1. ``foreground_share``: of the area, 0..1. nan where there are no images.
    """
    rows = []
    for number, target in enumerate(images):
        image = read_image(target.image)
        probabilities = segment(image, target.mpp)
        mask = probabilities.argmax(0).astype(np.uint8)
        row = {
            "stain_explained_variance": stain_explained_variance(image, mask, classes),
            "entropy": prediction_entropy(probabilities),
            "foreground_share": 1 - float(class_shares(mask, classes)[0]),
        }
        if views:
            row["augmentation_consistency"] = _mean(
                [_agrees(segment, target, image, mask, classes, number, view) for view in range(views)]
            )
        rows.append(row)
        on_image(target.name)
    names = (
        "stain_explained_variance",
        *(("augmentation_consistency",) if views else ()),
        "entropy",
        "foreground_share",
    )
    scores = {name: _mean([row[name] for row in rows]) for name in names}
    collapsed = views and rows and np.isnan(scores["augmentation_consistency"])
    return scores | ({"augmentation_consistency": 0.0} if collapsed else {})


def _agrees(
    segment: Segment,
    target: TargetImage,
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    classes: int,
    number: int,
    view: int,
) -> float:
    changed, back = _changed(image, number, view)
    return cohen_kappa(mask, back(segment(changed, target.mpp).argmax(0).astype(np.uint8)), classes)


def expected_foreground_share(labs: Sequence[LabDataset]) -> float:
    """Share of foreground in the training masks of the labelled labs."""
    shares = [
        1 - class_shares(read_mask(lab.mask_path(row)), len(lab.metadata.classes))[0]
        for lab in labs
        for row in lab.select(split="train", labelled=True)
    ]
    return _mean(shares)


def _changed(
    image: npt.NDArray[np.uint8], number: int, view: int
) -> tuple[npt.NDArray[np.uint8], Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]]:
    """The image recolored and turned, and the function that turns a mask of it back."""
    generator = step_generator(0, number, view)
    turns, flip = 1 + view % 3, view % 2 == 1
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    colored = (jitter_color(batch, _STRENGTH, generator) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    turned = np.rot90(colored, turns)
    changed = np.ascontiguousarray(turned[:, ::-1] if flip else turned)

    def back(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(np.rot90(mask[:, ::-1] if flip else mask, -turns))

    return changed, back


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
