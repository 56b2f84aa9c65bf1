"""Train the first segmenter, and adapt one to a new lab: from datasets on disk to a network on disk."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric

from microseg.data.colour import ColourStatistics, colour_statistics
from microseg.data.dataset import Lab
from microseg.data.images import read_image
from microseg.data.manifest import ManifestRow
from microseg.data.sampling import CropSampler, Sample
from microseg.errors import LabError
from microseg.evaluation import lab_references, lab_targets, label_free_scores, mean_scores, score
from microseg.inference import segment_image, weights_digest
from microseg.model import NetworkConfig, PyramidSegmenter, load_encoder_weights, load_network, save_network
from microseg.sdk.processes import Progress, launch
from microseg.training import (
    AdaptSettings,
    DualAdaptive,
    FitResult,
    FitSettings,
    Hooks,
    Supervised,
    TrainSettings,
    estimate_statistics,
    fit,
    make_fabric,
)

__all__ = ["Fitted", "adapt", "train"]

_STATISTICS_BATCHES = 10
_JUDGED_TARGETS = 6
_COLOUR_SIDE = 1024  # pixels; of larger images every other pixel, or fewer, tells the colours


@dataclass(frozen=True)
class Fitted:
    """A trained network on disk.

    Attributes:
        folder: with ``weights.safetensors`` and ``network.json``.
        result: how training went.
    """

    folder: Path
    result: FitResult


def train(
    labs: Sequence[Lab],
    config: NetworkConfig,
    settings: TrainSettings,
    *,
    folder: Path,
    seed: int = 0,
    fabric: Fabric | None = None,
    encoder_weights: str | Path | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Train a segmenter on labelled labs.

    Args:
        labs: datasets; their ``train`` split is trained on, their ``val`` split chooses the checkpoint.
        config: the network.
        settings: the numbers.
        folder: where the network is written; a checkpoint lies beside it meanwhile, and an interrupted run goes on
            from it.
        seed: of weights, crops and changes of colour.
        fabric: device and processes; the best device there is by default.
        encoder_weights: of the encoder: ``imagenet``, a file, or None for random ones.
        progress: what to tell the caller.

    Raises:
        LabError: when a lab has no labelled image to train on, or the labs' classes differ.
    """
    fabric = fabric or make_fabric()
    fabric.seed_everything(seed, verbose=False)
    _same_classes(labs, config.classes)
    network = PyramidSegmenter(config)
    if encoder_weights is not None:
        load_encoder_weights(network, encoder_weights)
    samples = _labelled_samples(labs, config.mpp)
    crop, batch = _crop_size(labs, settings, config.mpp)
    labelled = CropSampler(samples, size=crop, batch=batch, seed=seed, zoom=settings.zoom)
    method = Supervised(network, labelled, settings)
    job = _Job(method, settings, tuple(labs), (), folder, seed)
    return launch(fabric, _fit, job, progress or Progress())


def adapt(
    network: PyramidSegmenter | Path,
    source: Sequence[Lab],
    target: Sequence[Lab],
    settings: AdaptSettings | None = None,
    *,
    folder: Path,
    seed: int = 0,
    fabric: Fabric | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Adapt a segmenter to new labs without any label from them.

    Args:
        network: the segmenter in use, or the folder of one; it is not changed.
        source: the labelled labs that it was trained on.
        target: the new labs; their masks, where there are any, are not read.
        settings: the numbers; the defaults where None.
        folder: where the adapted network is written; an interrupted run goes on from the checkpoint beside it.
        seed: of crops and changes of colour.
        fabric: device and processes; the best device there is by default.
        progress: what to tell the caller.

    Raises:
        LabError: when the source labs have no labels, the target labs no images, or classes differ.
    """
    settings = settings or AdaptSettings()
    fabric = fabric or make_fabric()
    fabric.seed_everything(seed, verbose=False)
    base = load_network(network) if isinstance(network, Path) else copy.deepcopy(network)
    mpp = base.config.mpp
    _same_classes([*source, *target], base.config.classes)
    crop, batch = _crop_size([*source, *target], settings, mpp)
    labelled = _labelled_samples(source, mpp)
    unlabelled = [sample for lab in target for sample in _samples(lab, lab.rows, mpp, masks=False)]
    if not unlabelled:
        raise LabError("Expected images of a new lab to adapt to, found none: give a lab that is ingested.")
    make = partial(CropSampler, size=crop, batch=batch, zoom=settings.zoom)
    method = DualAdaptive(
        base,
        make(labelled, seed=seed),
        make(unlabelled, seed=seed + 1),
        _colours(unlabelled),
        settings,
    )

    statistics = {"running": (), "target": (unlabelled,), "mixed": (unlabelled, labelled)}[settings.statistics]
    job = _Job(
        method,
        settings,
        tuple(source),
        tuple(target),
        folder,
        seed,
        tuple(make(images, seed=seed + 2).unlabelled() for images in statistics),
    )
    return launch(fabric, _fit, job, progress or Progress())


@dataclass(frozen=True)
class _Job:
    """What a process needs to train.

    Attributes:
        method: what is trained.
        settings: the numbers.
        source: labelled labs.
        target: labs adapted to.
        folder: where the network is written.
        seed: of this training.
        statistics: samplers of the images whose batch-norm statistics the result carries; none for those of training.
    """

    method: Supervised | DualAdaptive
    settings: FitSettings
    source: tuple[Lab, ...]
    target: tuple[Lab, ...]
    folder: Path
    seed: int
    statistics: tuple[CropSampler, ...] = ()


def _fit(fabric: Fabric, job: _Job, progress: Progress) -> Fitted:
    def renew_statistics(judged: PyramidSegmenter) -> None:
        batches = (sampler.draw(step).images for sampler in job.statistics for step in range(_STATISTICS_BATCHES))
        if job.statistics:
            estimate_statistics(judged, (fabric.to_device(batch) for batch in batches))

    judge = partial(_judge, source=job.source, target=job.target)
    checkpoint = job.folder.with_name(job.folder.name + ".checkpoint")
    result = fit(
        job.method,
        job.settings,
        fabric=fabric,
        hooks=Hooks(judge, progress.on_step, progress.on_evaluation),
        checkpoint=checkpoint,
        fingerprint=_fingerprint(job),
        prepare=renew_statistics,
    )
    if fabric.is_global_zero:
        save_network(job.folder, job.method.result().cpu())
        checkpoint.unlink(missing_ok=True)
    fabric.barrier()
    return Fitted(job.folder, result)


def _judge(network: PyramidSegmenter, *, source: Sequence[Lab], target: Sequence[Lab]) -> Mapping[str, float]:
    """What can be known without the target's labels: Dice on the labelled labs' ``val`` split, agreement on the new
    labs.
    """
    classes = network.config.classes
    segment = partial(_segment, network)
    dice = [
        mean_scores(score(segment, references, classes))["dice"]
        for lab in source
        if (references := lab_references(lab, "val"))
    ]
    known = [value for value in dice if np.isfinite(value)]
    figures = {"source_dice": float(np.mean(known))} if known else {}
    if target:
        images = [image for lab in target for image in lab_targets(lab, _JUDGED_TARGETS)]
        figures |= {f"target_{name}": value for name, value in label_free_scores(segment, images, len(classes)).items()}
    parts = [figures[name] for name in ("source_dice", "target_agreement") if name in figures]
    return figures | {"score": float(np.nansum(parts))} if parts else figures


def _segment(network: PyramidSegmenter, image: npt.NDArray[np.uint8], mpp: float | None) -> npt.NDArray[np.float32]:
    return segment_image(network, image, mpp=mpp)


def _same_classes(labs: Sequence[Lab], classes: tuple[str, ...]) -> None:
    for lab in labs:
        if lab.card.classes != classes:
            raise LabError(
                f"Expected lab {lab.card.lab} to have the classes {list(classes)}, got {list(lab.card.classes)}: "
                "all labs of one segmenter share their classes; correct lab.yaml and ingest again."
            )


def _labelled_samples(labs: Sequence[Lab], mpp: float | None) -> list[Sample]:
    samples = [
        sample for lab in labs for sample in _samples(lab, lab.select(split="train", labelled=True), mpp, masks=True)
    ]
    if not samples:
        names = ", ".join(lab.card.lab for lab in labs) or "none"
        raise LabError(f"Expected labelled images to train on, found none in the labs given ({names}).")
    return samples


def _samples(lab: Lab, rows: Sequence[ManifestRow], mpp: float | None, *, masks: bool) -> Iterator[Sample]:
    for row in rows:
        zoom = row.mpp / mpp if row.mpp is not None and mpp is not None else 1.0
        yield Sample(lab.image_path(row), lab.mask_path(row) if masks else None, zoom)


def _crop_size(labs: Sequence[Lab], settings: FitSettings, mpp: float | None) -> tuple[int, int]:
    """Side and number of crops: not larger than the images usually are, then so many more of them."""
    sides = [
        min(row.width, row.height) * (row.mpp / mpp if row.mpp is not None and mpp is not None else 1.0)
        for lab in labs
        for row in lab.rows
    ]
    if not sides:
        raise LabError("Expected images in every lab, found none: ingest the lab first.")
    side = min(settings.crop, 32 * int(np.ceil(np.median(sides) / 32)))
    more = (settings.crop / side) ** 2
    return side, int(np.clip(round(settings.batch * more), settings.batch, 4 * settings.batch))


def _colours(samples: Sequence[Sample]) -> ColourStatistics:
    each = []
    for sample in samples:
        image = read_image(sample.image)
        stride = max(1, max(image.shape) // _COLOUR_SIDE)
        pixels = torch.from_numpy(image[::stride, ::stride].copy()).permute(2, 0, 1)[None]  # (1, 3, h, w) uint8
        each.append(colour_statistics(pixels.float() / 255))
    return ColourStatistics(torch.cat([one.mean for one in each]), torch.cat([one.covariance for one in each]))


def _fingerprint(job: _Job) -> str:
    """Of all that decides the result: the network that training starts from, the numbers, the images and their use."""
    start = job.method.network
    told = {
        "network": start.config.model_dump(mode="json"),
        "weights": weights_digest(start),
        "settings": job.settings.model_dump(mode="json"),
        "source": [[(row.sha256, row.mask, row.split) for row in lab.rows] for lab in job.source],
        "target": [[row.sha256 for row in lab.rows] for lab in job.target],
        "seed": job.seed,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
