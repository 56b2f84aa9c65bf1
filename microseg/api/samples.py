"""Samples that a training draws crops from: labelled images of labs, corrected regions, and the size of the crops."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from microseg.annotations.index_masks import read_mask
from microseg.annotations.instance_masks import read_instances
from microseg.config.training_params import FitSettings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import Sample, labelled_parts
from microseg.datasets.windows import WINDOW_SIDE
from microseg.errors import LabError
from microseg.models.config import NetworkConfig
from microseg.slides.pixel_size import model_zoom

__all__ = ["crop_size", "image_samples", "labelled_samples", "median_mpp", "smallest_instance", "with_corrections"]

_OUTLIERS = 0.01  # fraction of the labelled objects, the smallest ones, that do not count


def labelled_samples(labs: Sequence[LabDataset], config: NetworkConfig) -> list[Sample]:
    """Labelled images of the split ``train``, with their numbered objects where the network separates some."""
    samples = list(_train_samples(labs, config))
    if not samples:
        names = ", ".join(lab.metadata.lab for lab in labs) or "none"
        raise LabError(
            f"Expected labelled images to train on, found none in the labs given ({names}). To adapt without them, set "
            "adapt.source=none."
        )
    return samples


def with_corrections(
    labelled: list[Sample], targets: Sequence[LabDataset], config: NetworkConfig, share: float
) -> list[Sample]:
    """Add the labelled regions of target labs, as often as their share of all crops requires."""
    regions = list(_train_samples(targets, config))
    if not regions or share == 0:
        return labelled
    count = math.ceil(share / (1 - share) * len(labelled))
    return [*labelled, *itertools.islice(itertools.cycle(regions), max(count, len(regions)))]


def image_samples(lab: LabDataset, mpp: float | None, megapixels: float | None = None) -> list[Sample]:
    """Images of a lab, without masks, at the model's scale.

    Args:
        lab: The lab.
        mpp: The model's pixel size, in microns per pixel; None if unknown.
        megapixels: Of a lab with slides, how much to look at, in windows of `cut_windows`; None for all.
    """
    rows = lab.rows
    if megapixels is not None and lab.slides is not None:
        rows = lab.spread(max(1, round(1e6 * megapixels / WINDOW_SIDE**2)))
    return [Sample(lab.image(row), None, model_zoom(row.mpp, mpp)) for row in rows]


def _train_samples(labs: Sequence[LabDataset], config: NetworkConfig) -> Iterator[Sample]:
    """Labelled images of the split ``train``; of one with labels in small parts only, a sample for each part."""
    for lab in labs:
        for row in lab.select(split="train", labelled=True):
            mask, instances = lab.mask_path(row), lab.instances_path(row) if config.instances else None
            sample = Sample(lab.image(row), mask, model_zoom(row.mpp, config.mpp), instances=instances)
            for region in labelled_parts(read_mask(mask)) or (None,):
                yield replace(sample, focus=region)


def crop_size(labs: Sequence[LabDataset], settings: FitSettings, mpp: float | None) -> tuple[int, int]:
    """Side and number of crops: not larger than the median image of the lab with the largest images; smaller crops are
    more in number.
    """
    sides = [
        np.median([min(row.width, row.height) * model_zoom(row.mpp, mpp) for row in lab.rows])
        for lab in labs
        if lab.rows
    ]
    if not sides:
        raise LabError("Expected images in every lab, found none: ingest the lab first.")
    side = min(settings.crop_size, 32 * int(np.ceil(max(sides) / 32)))
    factor = (settings.crop_size / side) ** 2
    return side, int(np.clip(round(settings.batch_size * factor), settings.batch_size, 4 * settings.batch_size))


def median_mpp(labs: Sequence[LabDataset]) -> float | None:
    """Median pixel size of the images of known size."""
    known = [row.mpp for lab in labs for row in lab.rows if row.mpp is not None]
    return float(np.median(known)) if known else None


def smallest_instance(labs: Sequence[LabDataset], mpp: float | None) -> float:
    """Half of the area that nearly all labelled objects exceed, in pixels at the model's scale."""
    areas = [
        np.bincount(read_instances(path).ravel())[1:] * model_zoom(row.mpp, mpp) ** 2
        for lab in labs
        for row in lab.select(split="train", labelled=True)
        if (path := lab.instances_path(row)) is not None
    ]
    present = np.concatenate([each[each > 0] for each in areas]) if areas else np.zeros(0)
    return 0.5 * float(np.quantile(present, _OUTLIERS)) if len(present) else 0.0
