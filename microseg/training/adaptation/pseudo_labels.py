"""Pseudo-labels of target images: predictions of a teacher, as masks to train on.

The initial predictions come from the network in use, with batch-norm statistics mixed with those of the target lab as
far as these can be used (statistics mixing); later rounds average them with the predictions of the EMA of the network
in training, so that its errors do not reinforce themselves. Each teacher predicts at several scales and rotations.
Where color predicts the classes, color clusters vote on the labels (`color_voting`); where it does not, and the lab's
statistics can be used, all, half or none of the initial predictions are made on color-aligned images: the more, the
more confident and consistent the network is on them (color-aligned test-time augmentation). Regions that never occur in
the source labs are removed from all labels (`region_rules`).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microseg.annotations.instance_masks import write_instances
from microseg.datasets.sampling import Sample, evenly_spaced
from microseg.files import atomic_write, write_text_file
from microseg.models.network import PyramidSegmenter
from microseg.models.separation import Separation, interior_bytes, separate_objects
from microseg.slides.images import read_image, write_png
from microseg.slides.modality import lab_modality
from microseg.training.adaptation.color_voting import color_clusters, voted_labels
from microseg.training.adaptation.domain_shift import (
    SHIFT_IMAGES,
    TargetLab,
    at_scale,
    mixed_network,
    outputs_at,
    predict_views,
    to_batch,
)
from microseg.training.adaptation.region_rules import plausible_labels
from microseg.training.adaptation.source_priors import SourcePriors
from microseg.training.color_augmentation import ColorStatistics, transfer_color

__all__ = ["pseudo_labelled_samples", "write_pseudo_labels"]

_ZOOMS = (0.8, 1.0, 1.25)  # relative to the scale of the source labs
_ROTATIONS = (0, 1)  # quarter turns
_HALF_SHARE = 1.5  # times the share of the target's statistics, of the other half where half of the views are aligned
_ALIGNMENT = 0.5  # fraction of the way from an image's colors to the source labs'
_DONE = "done"

_log = logging.getLogger(__name__)


def write_pseudo_labels(
    labs: Sequence[TargetLab],
    number: int,
    folder: Path,
    *,
    base: PyramidSegmenter,
    teacher: PyramidSegmenter,
    priors: SourcePriors,
) -> None:
    """Write the masks of a round; a finished round is not computed again.

    Args:
        labs: Labs whose windows are labelled.
        number: Number of the round, from 0.
        folder: Folder of all rounds.
        base: Network in use.
        teacher: EMA of the network in training; not used in round 0.
        priors: Priors from the source labs.
    """
    done = _round_folder(folder, number) / _DONE
    if done.exists():
        return
    for lab in labs:
        images = [read_image(window) for window in lab.windows]
        valid = priors.for_modality(lab_modality(images))
        predictions = _initial_predictions(base, lab, folder / "initial" / lab.name, valid.colors)
        if number:
            zooms = sorted({1.0, lab.shift.zoom**0.5})
            current = (_predict(teacher, _read(window), zooms, _ROTATIONS).cpu() for window in lab.windows)
            predictions = [torch.lerp(before, now, 0.5) for before, now in zip(predictions, current, strict=True)]
        outputs = predictions  # (K + M, H, W) each
        predictions = [each[: len(base.config.classes)] for each in outputs]  # (K, H, W) each
        if valid.color_voting:
            labels = voted_labels(predictions, color_clusters(images), valid.rules, lab.shift.zoom)
        else:
            labels = plausible_labels(predictions, valid.rules, lab.shift.zoom)
        target = _round_folder(folder, number) / lab.name
        target.mkdir(parents=True, exist_ok=True)
        for window, mask in zip(lab.windows, labels, strict=True):
            write_png(target / window.name, mask)
        if base.config.instances:
            config = base.config
            separation = Separation(config.instance_indices, 1 / lab.shift.zoom, config.smallest_instance)
            numbered = _instances_folder(target)
            numbered.mkdir(exist_ok=True)
            for window, mask, each in zip(lab.windows, labels, outputs, strict=True):
                interior = interior_bytes(each[base.channels.index("interior")].numpy())
                write_instances(numbered / window.name, separate_objects(mask, interior, separation))
    done.touch()


def pseudo_labelled_samples(labs: Sequence[TargetLab], number: int, folder: Path) -> list[Sample]:
    """Windows with the masks of a round, and with numbered objects where the network separates some."""
    samples = []
    for lab in labs:
        masks = _round_folder(folder, number) / lab.name
        for window in lab.windows:
            instances = _instances_folder(masks) / window.name
            samples.append(Sample(window, masks / window.name, instances=instances if instances.is_file() else None))
    return samples


def _instances_folder(masks: Path) -> Path:
    return masks / "instances"


def _initial_predictions(
    network: PyramidSegmenter, lab: TargetLab, folder: Path, colors: ColorStatistics | None
) -> list[Tensor]:
    """Outputs of the network in use, computed in the first round; with colors, and where these suit, of images whose
    colors are moved half-way to them.
    """
    done = folder / _DONE
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        zooms = [lab.shift.zoom * zoom for zoom in _ZOOMS]
        mixed = mixed_network(network, lab.shift.zoomed_statistics, lab.shift.share)
        # the colors of a lab with another class balance differ for other reasons than its stain
        aligned = _aligned_rotations(mixed, lab, colors) if colors is not None and lab.shift.share else 0
        _log.info("%d of %d rotations of the images of %s are color-aligned", aligned, len(_ROTATIONS), lab.name)
        split = len(_ROTATIONS) - aligned
        as_is = mixed
        if 0 < aligned < len(_ROTATIONS):
            as_is = mixed_network(network, lab.shift.zoomed_statistics, _HALF_SHARE * lab.shift.share)
        for window in lab.windows:
            image = _read(window)
            parts = [_predict(as_is, image, zooms, _ROTATIONS[:split])] if split else []
            if aligned and colors is not None:
                parts.append(_predict(mixed, _align(image, colors), zooms, _ROTATIONS[split:]))
            predicted = torch.stack(parts).mean(0)
            with atomic_write(folder / f"{window.stem}.npy") as part, part.open("wb") as file:
                np.save(file, predicted.half().cpu().numpy())
        write_text_file(done, "")
    return [torch.from_numpy(np.load(folder / f"{window.stem}.npy")).float() for window in lab.windows]


def _aligned_rotations(network: PyramidSegmenter, lab: TargetLab, colors: ColorStatistics) -> int:
    """Rotations that are predicted on color-aligned images: all where the network is at least as confident and at
    least as consistent on these as on the images as they are, half of them where it is only one of both, else none.
    """
    images = [read_image(window) for window in evenly_spaced(lab.windows, SHIFT_IMAGES)]
    batches = list(at_scale(network, images, lab.shift.zoom))
    before = predict_views(network, batches)
    after = predict_views(network, [_align(batch.cpu(), colors).to(batch.device) for batch in batches])
    better = (after.consistency >= before.consistency, after.confidence >= before.confidence)  # False for NaN
    return sum(better) * len(_ROTATIONS) // len(better)


def _align(image: Tensor, colors: ColorStatistics) -> Tensor:
    """Move the colors of an image, (1, 3, H, W) on the CPU, half-way to others."""
    return transfer_color(image, colors, torch.tensor([_ALIGNMENT]))


def _predict(teacher: PyramidSegmenter, image: Tensor, zooms: Sequence[float], rotations: Sequence[int]) -> Tensor:
    """Mean outputs over scales and rotations: (1, 3, H, W) → (K + M, H, W)."""
    batch = image.to(next(teacher.parameters()).device)
    predictions = [
        torch.rot90(outputs_at(teacher, torch.rot90(batch, turns, (2, 3)), zoom), -turns, (2, 3))
        for zoom in zooms
        for turns in rotations
    ]
    return torch.stack(predictions).mean(0)[0]


def _read(window: Path) -> Tensor:
    return to_batch(read_image(window), torch.device("cpu"))


def _round_folder(folder: Path, number: int) -> Path:
    return folder / f"round-{number}"
