"""Train the first segmenter, and adapt one to a new lab: from datasets on disk to a network on disk."""

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lightning_fabric import Fabric

from microseg.config.params import AdaptSettings, FitSettings, TrainSettings
from microseg.datasets.dataset import LabDataset, ManifestRow
from microseg.datasets.sampling import CropSampler, Sample, cut_windows
from microseg.errors import LabError
from microseg.evaluation.label_free import lab_targets, label_free_scores
from microseg.evaluation.references import lab_references, mean_scores, score
from microseg.inference.engine import segment_image
from microseg.models.config import NetworkConfig
from microseg.models.files import load_encoder_weights, load_network, save_network, weights_digest
from microseg.models.network import PyramidSegmenter
from microseg.slides.images import read_image
from microseg.slides.pixel_size import model_zoom
from microseg.training.adaptation.domain_shift import estimate_domain_shift
from microseg.training.adaptation.dual_adaptive import DualAdaptive
from microseg.training.adaptation.pseudo_labels import TargetLab
from microseg.training.devices import make_fabric
from microseg.training.launch import Progress, launch
from microseg.training.loop import FitResult, Hooks, fit
from microseg.training.supervised import Supervised

__all__ = ["TrainingResult", "adapt", "train"]

_JUDGED_TARGETS = 6
_SOURCE_MEGAPIXELS = 4.0  # of the labelled labs, to compare the new one with


@dataclass(frozen=True)
class TrainingResult:
    """A trained network on disk.

    Attributes:
        folder: with ``weights.safetensors`` and ``network.json``.
        result: how training went.
    """

    folder: Path
    result: FitResult


def train(
    labs: Sequence[LabDataset],
    config: NetworkConfig,
    settings: TrainSettings,
    *,
    folder: Path,
    seed: int = 0,
    fabric: Fabric | None = None,
    encoder_weights: str | Path | None = None,
    start: Path | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a segmenter on labelled labs.

    Args:
        labs: datasets; their ``train`` split is trained on, their ``val`` split chooses the checkpoint.
        config: the network.
        settings: the numbers.
        folder: where the network is written; a checkpoint lies beside it meanwhile, and an interrupted run goes on
            from it.
        seed: of weights, crops and changes of color.
        fabric: device and processes; the best device there is by default.
        encoder_weights: of the encoder: ``imagenet``, a file, or None for random ones.
        start: folder of a network to go on from, of the same configuration, in place of ``encoder_weights``.
        progress: what to tell the caller.

    Raises:
        LabError: when a lab has no labelled image to train on, or the labs' classes differ.
    """
    fabric = fabric or make_fabric()
    fabric.seed_everything(seed, verbose=False)
    _same_classes(labs, config.classes)
    network = PyramidSegmenter(config) if start is None else load_network(start)
    if encoder_weights is not None and start is None:
        load_encoder_weights(network, encoder_weights)
    samples = _labelled_samples(labs, config.mpp)
    crop, batch = _crop_size(labs, settings, config.mpp)
    labelled = CropSampler(samples, size=crop, batch=batch, seed=seed, zoom=settings.zoom_range)
    method = Supervised(network, labelled, settings)
    job = _Job(method, settings, tuple(labs), (), folder, seed)
    return launch(fabric, _fit, job, progress or Progress())


def adapt(
    network: PyramidSegmenter | Path,
    source: Sequence[LabDataset],
    target: Sequence[LabDataset],
    settings: AdaptSettings | None = None,
    *,
    folder: Path,
    seed: int = 0,
    fabric: Fabric | None = None,
    progress: Progress | None = None,
    method: type[DualAdaptive] = DualAdaptive,
) -> TrainingResult:
    """Adapt a segmenter to new labs without any label from them.

    Args:
        network: the segmenter in use, or the folder of one; it is not changed.
        source: the labelled labs that it was trained on.
        target: the new labs; their masks, where there are any, are not read.
        settings: the numbers; the defaults where None.
        folder: where the adapted network is written; an interrupted run goes on from the checkpoint beside it.
        seed: of crops and changes of color.
        fabric: device and processes; the best device there is by default.
        progress: what to tell the caller.
        method: the training method; another one is given only to compare with.

    Raises:
        LabError: when the source labs have no labels, the target labs no images, or classes differ.
    """
    settings, began = settings or AdaptSettings(), time.monotonic()
    fabric = fabric or make_fabric()
    fabric.seed_everything(seed, verbose=False)
    base = load_network(network) if isinstance(network, Path) else copy.deepcopy(network)
    mpp = base.config.mpp
    _same_classes([*source, *target], base.config.classes)
    crop, batch = _crop_size([*source, *target], settings, mpp)
    labelled = _labelled_samples(source, mpp)
    if not any(lab.rows for lab in target):
        raise LabError("Expected images of a new lab to adapt to, found none: give a lab that is ingested.")
    work = _work_folder(folder)
    if not _checkpoint_file(folder).exists():
        shutil.rmtree(work, ignore_errors=True)  # of a training that will not go on
    base.to(fabric.device)
    known = [read_image(file) for file in cut_windows(labelled, work / "source", megapixels=_SOURCE_MEGAPIXELS)]
    labs = [_target_lab(base, lab, known, work, search=settings.search_scale) for lab in target]
    adaptation = method(base, labelled, labs, settings, crop=crop, batch=batch, seed=seed, folder=work)
    spent = time.monotonic() - began
    job = _Job(adaptation, settings, tuple(source), tuple(target), folder, seed, spent)
    return launch(fabric, _fit, job, progress or Progress())


def _target_lab(
    network: PyramidSegmenter, lab: LabDataset, known: Sequence[npt.NDArray[np.uint8]], work: Path, *, search: bool
) -> TargetLab:
    """A new lab's windows and what is found about it."""
    mpp = network.config.mpp
    samples = list(_samples(lab, lab.rows, mpp, masks=False))
    windows = cut_windows(samples, work / "windows" / lab.metadata.lab)
    unknown = mpp is None or any(row.mpp is None for row in lab.rows)
    images = [read_image(file) for file in windows]
    shift = estimate_domain_shift(network, known, images, search_scale=search and unknown)
    return TargetLab(lab.metadata.lab, windows, shift)


def _checkpoint_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".checkpoint")


def _work_folder(folder: Path) -> Path:
    """Of windows and pseudo-labels, beside the checkpoint."""
    return folder.with_name(folder.name + ".work")


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
        spent: seconds that preparing took.
    """

    method: Supervised | DualAdaptive
    settings: FitSettings
    source: tuple[LabDataset, ...]
    target: tuple[LabDataset, ...]
    folder: Path
    seed: int
    spent: float = 0.0


def _fit(fabric: Fabric, job: _Job, progress: Progress) -> TrainingResult:
    judge = partial(_judge, source=job.source, target=job.target)
    checkpoint = _checkpoint_file(job.folder)
    result = fit(
        job.method,
        job.settings,
        fabric=fabric,
        hooks=Hooks(judge, progress.on_step, progress.on_evaluation),
        checkpoint=checkpoint,
        fingerprint=_fingerprint(job),
        spent=job.spent,
    )
    if fabric.is_global_zero:
        save_network(job.folder, job.method.result().cpu())
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(_work_folder(job.folder), ignore_errors=True)
    fabric.barrier()
    return TrainingResult(job.folder, result)


def _judge(
    network: PyramidSegmenter, *, source: Sequence[LabDataset], target: Sequence[LabDataset]
) -> Mapping[str, float]:
    """What can be known without the target's labels: Dice on the labelled labs' ``val`` split, and how far the classes
    segmented on the new labs look apart.
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
        scores = label_free_scores(segment, images, len(classes), views=0)
        figures |= {f"target_{name}": value for name, value in scores.items()}
    parts = [figures[name] for name in ("source_dice", "target_stain_explained_variance") if name in figures]
    return figures | {"score": float(np.nansum(parts))} if parts else figures


def _segment(network: PyramidSegmenter, image: npt.NDArray[np.uint8], mpp: float | None) -> npt.NDArray[np.float32]:
    return segment_image(network, image, mpp=mpp)


def _same_classes(labs: Sequence[LabDataset], classes: tuple[str, ...]) -> None:
    for lab in labs:
        if lab.metadata.classes != classes:
            raise LabError(
                f"Expected lab {lab.metadata.lab} to have the classes {list(classes)}, "
                f"got {list(lab.metadata.classes)}: "
                "all labs of one segmenter share their classes; correct lab.yaml and ingest again."
            )


def _labelled_samples(labs: Sequence[LabDataset], mpp: float | None) -> list[Sample]:
    samples = [
        sample for lab in labs for sample in _samples(lab, lab.select(split="train", labelled=True), mpp, masks=True)
    ]
    if not samples:
        names = ", ".join(lab.metadata.lab for lab in labs) or "none"
        raise LabError(f"Expected labelled images to train on, found none in the labs given ({names}).")
    return samples


def _samples(lab: LabDataset, rows: Sequence[ManifestRow], mpp: float | None, *, masks: bool) -> Iterator[Sample]:
    for row in rows:
        yield Sample(lab.image_path(row), lab.mask_path(row) if masks else None, model_zoom(row.mpp, mpp))


def _crop_size(labs: Sequence[LabDataset], settings: FitSettings, mpp: float | None) -> tuple[int, int]:
    """Side and number of crops: not larger than the images of the lab with the largest usually are, then so many more
    of them.
    """
    usual = [
        np.median([min(row.width, row.height) * model_zoom(row.mpp, mpp) for row in lab.rows])
        for lab in labs
        if lab.rows
    ]
    if not usual:
        raise LabError("Expected images in every lab, found none: ingest the lab first.")
    side = min(settings.crop_size, 32 * int(np.ceil(max(usual) / 32)))
    more = (settings.crop_size / side) ** 2
    return side, int(np.clip(round(settings.batch_size * more), settings.batch_size, 4 * settings.batch_size))


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
