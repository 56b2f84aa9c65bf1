"""The measurements of one network: label-free scores on the target lab, and separately its true Dice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from benchmarks.adaptation.tasks import Task, open_labs
from benchmarks.evidence.label_shift import estimated_shares
from benchmarks.evidence.object_size import typical_object_area
from benchmarks.evidence.overturned import confident_pixels, overturn_support, overturned_share
from benchmarks.evidence.predictions import StoredPredictions
from benchmarks.evidence.scores import share_shift, soft_neighborhood_density
from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import evenly_spaced
from microseg.evaluation.criteria import class_shares, cohen_kappa
from microseg.evaluation.label_free import TargetImage, expected_foreground_share, lab_targets, label_free_scores
from microseg.evaluation.pixel_criteria import labelled_pixels
from microseg.evaluation.pixel_features import PIXEL_STRIDE, pixel_features
from microseg.evaluation.references import Reference, mean_scores, score
from microseg.evaluation.reverse_validation import (
    LabelledPixels,
    forward_scores,
    forward_validation,
    reverse_validation,
)
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter
from microseg.models.separation import class_mask
from microseg.slides.images import read_image, write_png
from microseg.slides.modality import Modality, lab_modality
from microseg.slides.region import ImageSource, read_source
from microseg.training.adaptation.domain_shift import center_crop, to_batch

__all__ = ["EvaluationImages", "evidence", "report_images", "true_dice"]

_SIDE = 320  # pixels of the center crops
_PIXELS = 1500  # of all images, for the neighborhood density
_SOURCE_IMAGES = 12

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EvaluationImages:
    """The images on which the networks of a task are measured, without the target's test masks.

    Args:
        source: Dataset of the source lab.
        target: Images of the target lab.
        held_out: Selected test images of the source lab.
    """

    source: LabDataset
    target: tuple[TargetImage, ...]
    held_out: tuple[Reference, ...]

    @classmethod
    def of(cls, task: Task, work: Path, limit: int) -> "EvaluationImages":
        """Select the images of a task, evenly spread, and cut their centers out.

        Args:
            task: The task.
            work: Folder of its datasets and of the crops.
            limit: Largest number of images of each lab.
        """
        source, target = open_labs(task, work)
        targets = (
            TargetImage(it.name, _crop(it.image, work / "crops" / "target"), it.mpp, it.slide)
            for it in evenly_spaced(lab_targets(target), limit)
        )
        return cls(source, tuple(targets), report_images(task, "source", work, limit))

    @cached_property
    def pixels(self) -> list[Image]:
        """The target lab's images, (H, W, 3) each."""
        return [read_source(each.image) for each in self.target]

    def inputs(self) -> list[tuple[Image, float | None]]:
        """The target lab's images and their microns per pixel."""
        return [(image, each.mpp) for image, each in zip(self.pixels, self.target, strict=True)]

    @cached_property
    def modality(self) -> Modality:
        """What the target lab's images are."""
        return lab_modality(self.pixels)

    @cached_property
    def expected(self) -> npt.NDArray[np.float64]:
        """Area fraction of each class in the source lab's training masks, (K,)."""
        classes = len(self.source.metadata.classes)
        rows = self.source.select(split="train", labelled=True)
        shares = np.array([class_shares(read_mask(self.source.mask_path(row)), classes) for row in rows])  # (N, K)
        return np.asarray(shares.mean(0), np.float64)

    @cached_property
    def source_pixels(self) -> LabelledPixels:
        """Pixels of the source lab with their true classes."""
        rows = evenly_spaced(self.source.select(split="train", labelled=True), _SOURCE_IMAGES)
        images = [center_crop(read_image(self.source.image_path(row)), _SIDE) for row in rows]
        masks = [center_crop(read_mask(self.source.mask_path(row)), _SIDE) for row in rows]
        return labelled_pixels([pixel_features(it, self.common_modality) for it in images], masks)

    @cached_property
    def typical_area(self) -> float:
        """Area of the typical object in the source lab's masks."""
        rows = evenly_spaced(self.source.select(split="train", labelled=True), 40)
        return typical_object_area(read_mask(self.source.mask_path(row)) for row in rows)

    @cached_property
    def forward_scores(self) -> dict[int, npt.NDArray[np.float64]]:
        """How much each pixel of the target looks like each foreground class of the source."""
        features = np.concatenate([it.reshape(-1, it.shape[-1]) for it in self.target_features])
        labels = range(1, len(self.source.metadata.classes))
        found = {label: forward_scores(self.source_pixels, features, label) for label in labels}
        return {label: each for label, each in found.items() if each is not None}

    def network_features(
        self, production: StoredPredictions | Engine
    ) -> dict[str, tuple[LabelledPixels, list[npt.NDArray[np.float32]]]]:
        """Features of both labs by the network in production, which were not adapted."""
        if not isinstance(production, StoredPredictions):
            return {}
        key = str(production.folder)
        if key not in self.memory:
            network = production.build()
            rows = evenly_spaced(self.source.select(split="train", labelled=True), _SOURCE_IMAGES)
            images = [center_crop(read_image(self.source.image_path(row)), _SIDE) for row in rows]
            masks = [center_crop(read_mask(self.source.mask_path(row)), _SIDE) for row in rows]
            of_source, of_target = _encoded(network, images), _encoded(network, self.pixels)
            self.memory[key] = {name: (labelled_pixels(of_source[name], masks), of_target[name]) for name in of_source}
        spaces: dict[str, tuple[LabelledPixels, list[npt.NDArray[np.float32]]]] = self.memory[key]
        return spaces

    @cached_property
    def memory(self) -> dict[str, Any]:
        """Features by each network in production."""
        return {}

    @cached_property
    def common_modality(self) -> Modality:
        """Stained where the images of both labs are, else that of the target's."""
        rows = evenly_spaced(self.source.select(split="train", labelled=True), 8)
        source = lab_modality(read_image(self.source.image_path(row)) for row in rows)
        return self.modality if source.has_stain_colors else source

    @cached_property
    def target_features(self) -> list[npt.NDArray[np.float32]]:
        """Features of the target lab's pixels, (h, w, D) each."""
        return [pixel_features(it, self.common_modality) for it in self.pixels]


def report_images(task: Task, role: str, work: Path, limit: int) -> tuple[Reference, ...]:
    """Center crops of a lab's test images and masks."""
    folder = work / "crops"
    return tuple(
        Reference(
            it.name, _crop(it.image, folder / f"{role}_images"), _crop(it.mask, folder / f"{role}_masks", mask=True),
            it.mpp, it.slide,
        )
        for it in evenly_spaced(task.references(role), limit)
    )  # fmt: skip


def evidence(
    network: StoredPredictions | Engine, images: EvaluationImages, production: StoredPredictions | Engine | None
) -> dict[str, Any]:
    """Measure the evidence of the gate, and further scores; no mask of the target is read.

    Args:
        network: Predictions of the network.
        images: The images of the task.
        production: Predictions of the network in production; None if it is this one.

    Returns:
        ``source_dice``, Dice on the source lab's test images, and ``label_free``, scores by name; unknown ones are left
        out.
    """
    classes = images.source.metadata.classes
    count, production = len(classes), production or network
    scores: dict[str, float] = dict(label_free_scores(network.probabilities, images.target, count))
    probabilities = [network.probabilities(*pair) for pair in images.inputs()]
    masks = [class_mask(each) for each in probabilities]
    old_probabilities = [production.probabilities(*pair) for pair in images.inputs()]
    before = [class_mask(each) for each in old_probabilities]
    shares = np.mean([class_shares(mask, count) for mask in masks], axis=0)
    disturbed = [
        class_mask(network.probabilities(_disturb(image, n), mpp)) for n, (image, mpp) in enumerate(images.inputs())
    ]
    disturbed_before = [
        class_mask(production.probabilities(_disturb(image, n), mpp)) for n, (image, mpp) in enumerate(images.inputs())
    ]
    confident = [confident_pixels(each, [view]) for each, view in zip(old_probabilities, disturbed_before, strict=True)]
    flat_old, flat_new, flat_confident = (
        np.concatenate([it.ravel() for it in each]) for each in (before, masks, confident)
    )
    target = labelled_pixels(images.target_features, masks)
    lattice_old = labelled_pixels(images.target_features, before).labels
    support = [
        overturn_support(lattice_old, target.labels, each, label) for label, each in images.forward_scores.items()
    ]
    typical = typical_object_area(masks)
    estimated = estimated_shares(_sample(old_probabilities, 20_000), images.expected)
    own = estimated_shares(_sample(probabilities, 20_000), images.expected)
    scores |= {
        "expected_foreground_share": expected_foreground_share([images.source]),
        "images": len(masks),
        "teacher_agreement": _kappa(masks, before, count),
        "neighborhood_density": soft_neighborhood_density(_sample(probabilities)),
        "share_shift": share_shift(shares, images.expected),
        "label_shift_distance": share_shift(shares, estimated),
        "own_label_shift_distance": share_shift(shares, own),
        "estimated_foreground_share": float(1 - estimated[0]),
        "log_foreground_ratio": abs(float(np.log((1 - shares[0] + 1e-4) / (1 - images.expected[0] + 1e-4)))),
        "log_foreground_change": abs(float(np.log(((flat_new > 0).mean() + 1e-4) / ((flat_old > 0).mean() + 1e-4)))),
        "reverse_validation": reverse_validation(images.source_pixels, target, count),
        "forward_validation": forward_validation(images.source_pixels, target, count),
        "disturbance_consistency": _kappa(masks, disturbed, count),
        "object_size_shift": abs(float(np.log(typical / images.typical_area))),
        "object_size_change": abs(float(np.log(typical / typical_object_area(before)))),
        "overturned_share": overturned_share(flat_old, flat_new, flat_confident, count),
        "overturn_support": float(np.mean(support)),
    }
    for space, (of_source, of_target) in images.network_features(production).items():
        pixels = labelled_pixels(of_target, masks)
        scores[f"reverse_validation_{space}"] = reverse_validation(of_source, pixels, count)
        scores[f"forward_validation_{space}"] = forward_validation(of_source, pixels, count)
    known = {name: value for name, value in scores.items() if np.isfinite(value)}
    return {"source_dice": true_dice(network, images.held_out, classes), "label_free": known}


def true_dice(network: StoredPredictions | Engine, references: Sequence[Reference], classes: Sequence[str]) -> float:
    """Return the mean over the foreground classes of the mean Dice over images, as `benchmarks.adaptation` reports."""
    return float(mean_scores(score(network.probabilities, references, tuple(classes)))["dice"])


def _kappa(first: Sequence[Image], second: Sequence[Image], classes: int) -> float:
    """Cohen's kappa, mean over the images that have more than one class."""
    found = [cohen_kappa(*pair, classes) for pair in zip(first, second, strict=True)]
    finite = [value for value in found if np.isfinite(value)]
    return float(np.mean(finite)) if finite else 0.0


def _disturb(image: Image, number: int) -> Image:
    """Blur an image slightly, change its gamma, and add noise."""
    values = ndimage.gaussian_filter(image.astype(np.float32) / 255, (0.8, 0.8, 0)) ** (0.85 if number % 2 else 1.18)
    noise = np.random.default_rng(number).normal(0, 0.01, values.shape[:2])[..., None]
    return np.asarray((np.clip(values + noise, 0, 1) * 255).round(), np.uint8)


def _encoded(network: PyramidSegmenter, images: Sequence[Image]) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Features of every fourth pixel in the first levels of the encoder, and in the decoder."""
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    with torch.inference_mode():
        for image in images:
            padded = np.pad(image, ((0, -image.shape[0] % 32), (0, -image.shape[1] % 32), (0, 0)), mode="reflect")
            batch = to_batch(padded, torch.device("cpu"))
            levels = network.encoder((batch - network.mean) / network.std)
            spaces = {"encoder_0": levels[0], "encoder_1": levels[1]}
            spaces["decoder"] = network.decoder(levels, network.pyramid(levels[-1]))[-1]  # which empties the levels
            for name, level in spaces.items():
                size = padded.shape[0] // PIXEL_STRIDE, padded.shape[1] // PIXEL_STRIDE
                values = functional.interpolate(level, size, mode="bilinear")[0].permute(1, 2, 0).numpy()
                rows, columns = (-(-length // PIXEL_STRIDE) for length in image.shape[:2])
                found.setdefault(name, []).append(values[:rows, :columns])
    return found


def _sample(probabilities: Sequence[npt.NDArray[np.float32]], count: int = _PIXELS) -> npt.NDArray[np.float32]:
    """Probabilities of random pixels, the same for every network, (N, K)."""
    rng, each = np.random.default_rng(0), max(1, count // len(probabilities))
    pixels = [one.reshape(len(one), -1) for one in probabilities]  # (K, H·W) each
    return np.concatenate([one[:, rng.integers(one.shape[1], size=each)].T for one in pixels])


def _crop(file: ImageSource, folder: Path, *, mask: bool = False) -> Path:
    """Center crop of an image or a mask, written once."""
    assert isinstance(file, Path)
    target = folder / f"{file.stem}.png"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_png(target, center_crop(read_mask(file) if mask else read_image(file), _SIDE))
    return target
