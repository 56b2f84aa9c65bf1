"""Train a segmenter on labelled labs, and adapt one to new labs: from datasets to a network on disk."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from microseg.api.checkpoints import source_dice
from microseg.api.samples import (
    crop_size,
    image_samples,
    labelled_samples,
    median_mpp,
    smallest_instance,
    with_corrections,
)
from microseg.api.training_files import FEW_STEPS, TrainingFiles, fit_and_save, training_fingerprint
from microseg.config.training_params import AdaptSettings, NetworkSettings, TrainSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.decoded import DecodedFiles
from microseg.datasets.sampling import CropSampler
from microseg.datasets.windows import cut_windows
from microseg.errors import LabError, SettingsError
from microseg.models.config import NetworkConfig
from microseg.models.encoder_weights import load_encoder_weights
from microseg.models.files import load_network
from microseg.models.network import PyramidSegmenter, configure_network
from microseg.plugins import load_plugin
from microseg.slides.channels import check_channel_names
from microseg.slides.images import read_image
from microseg.training.adaptation.domain_shift import TargetLab, estimate_domain_shift
from microseg.training.adaptation.method import AdaptationMethod
from microseg.training.devices import Progress, launch, make_fabric, several_programs
from microseg.training.loop import TrainingResult
from microseg.training.method import Supervised

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["adapt", "train"]

_log = logging.getLogger(__name__)

_SOURCE_MEGAPIXELS = 4.0  # of the source labs, that target labs are compared with

Dataset = LabDataset | Path | str


def train(
    labs: Sequence[Dataset],
    network: NetworkSettings | None = None,
    settings: TrainSettings | None = None,
    *,
    folder: Path | str,
    seed: int = 0,
    fabric: Fabric | None = None,
    start: Path | None = None,
    progress: Progress | None = None,
    keep_checkpoint: bool = False,
) -> TrainingResult:
    """Train a segmenter on labelled labs.

    Classes and pixel size of the network come from the labs. An interrupted training resumes from its checkpoint,
    beside the folder, when it is started again with the same arguments; with others it starts from its beginning.

    Args:
        labs: Datasets, or their folders, as `microseg ingest` writes them. The split ``train`` is trained on, ``val``
            selects the best network.
        network: Architecture and encoder weights; the defaults of `microseg train` where None.
        settings: Settings of the training; the defaults of `microseg train` where None.
        folder: Folder that the network is written to.
        seed: Seed of initial weights, crops and color changes.
        fabric: Device and processes, see `make_fabric`; the fastest available device where None.
        start: Folder of a network to continue from, in place of a new one.
        progress: Callbacks.
        keep_checkpoint: Keep the last checkpoint, with which a second call returns the same result at once; see
            `remove_checkpoints`.

    Returns:
        Course of the training. The network is in ``folder``; load it with ``Segmenter.load(Path(folder))``.

    Raises:
        LabError: A lab has no labelled image, or the labs have different classes.
        DataError: The labs have different channels.
    """
    folder, settings, fabric = Path(folder), settings or TrainSettings(), fabric or make_fabric()
    datasets = _open(labs)
    if start is None:
        if not datasets:
            raise LabError("Expected at least one labelled lab to train on, got none: give ingested labs.")
        network = _with_instances(network or NetworkSettings(), datasets)
        mpp = median_mpp(datasets)
        smallest = smallest_instance(datasets, mpp) if network.instances else 0.0
        meaning = datasets[0].metadata
        config = configure_network(
            network, meaning.classes, mpp, smallest_instance=smallest, inputs=meaning.channel_names
        )
        fabric.seed_everything(seed, verbose=False)
        segmenter = PyramidSegmenter(config)
        if network.weights is not None:
            load_encoder_weights(segmenter, network.weights, network.weights_license)
    else:
        fabric.seed_everything(seed, verbose=False)
        segmenter = load_network(start)
        config = segmenter.config
    _require_same_meaning(datasets, config)
    samples = labelled_samples(datasets, config)
    crop, batch = crop_size(datasets, settings, config.mpp)
    files = TrainingFiles(folder, training_fingerprint(Supervised, segmenter, settings, datasets, [], seed))
    files.prepare(keep_work=several_programs(fabric))
    labelled = CropSampler(
        samples,
        size=crop,
        batch=batch,
        seed=seed,
        zoom=settings.zoom_range,
        classes=len(config.classes),
        decoded=DecodedFiles(files.work / "decoded"),
    )
    run = partial(
        fit_and_save,
        method=Supervised(segmenter, labelled, settings),
        source=datasets,
        target=[],
        files=files,
        keep_checkpoint=keep_checkpoint,
        elapsed=0.0,
    )
    return launch(fabric, run, progress or Progress())


def adapt(
    network: PyramidSegmenter | Path | str,
    source: Sequence[Dataset],
    target: Sequence[Dataset],
    settings: AdaptSettings | None = None,
    *,
    folder: Path | str,
    seed: int = 0,
    fabric: Fabric | None = None,
    progress: Progress | None = None,
    method: str | type[AdaptationMethod] | None = None,
    keep_checkpoint: bool = False,
) -> TrainingResult:
    """Adapt a segmenter to target labs, without labels from them or with a few.

    Where images of a target lab have labels, such as corrected regions, those in the split ``train`` are trained on;
    the others are for evaluation. A method without source images does not use them.

    An interrupted adaptation resumes from its checkpoint, beside the folder, when it is started again with the same
    arguments; with others it starts from its beginning.

    An adaptation first makes a segmenter worse. Where the time limit ends it before 60 steps, the network stays as it
    was, with a warning; ``settings.steps`` below that only cause the warning.

    Args:
        network: Segmenter in use, or its folder; it is not changed.
        source: Datasets of the labelled labs that it was trained on, or their folders; empty where ``settings.source``
            is ``none``.
        target: Datasets of the target labs, or their folders.
        settings: Settings of the adaptation; the defaults of `microseg adapt` where None.
        folder: Folder that the adapted network is written to.
        seed: Seed of crops and color changes.
        fabric: Device and processes, see `make_fabric`; the fastest available device where None.
        progress: Callbacks.
        method: Adaptation method, a name of the entry-point group ``microseg.adaptation_methods`` or a class;
            ``settings.method_in_use`` where None.
        keep_checkpoint: As in `train`.

    Returns:
        Course of the training. The network is in ``folder``; load it with ``Segmenter.load(Path(folder))``.

    Raises:
        LabError: The source labs have no labels, the target labs no images, or classes differ; or source labs are given
            although ``settings.source`` is ``none``, or the method needs some.
        PluginError: No adaptation method has that name.
        SettingsError: The processes are several programs, of several machines or started by torchrun.
    """
    start = time.monotonic()
    folder, settings, fabric = Path(folder), settings or AdaptSettings(), fabric or make_fabric()
    if several_programs(fabric):
        raise SettingsError(
            "Expected an adaptation to be one program on one machine, got several machines, or processes that torchrun "
            "started: its pseudo-labels are files that one process writes for all. Use devices for several GPUs of one "
            "machine, without torchrun."
        )
    chosen = settings.method_in_use if method is None else method
    kind: type[AdaptationMethod] = (
        load_plugin("microseg.adaptation_methods", chosen) if isinstance(chosen, str) else chosen
    )
    fabric.seed_everything(seed, verbose=False)
    base = copy.deepcopy(network).eval() if isinstance(network, PyramidSegmenter) else load_network(Path(network))
    labelled_labs, target_labs, mpp = _open(source), _open(target), base.config.mpp
    _require_same_meaning([*labelled_labs, *target_labs], base.config)
    crop, batch = crop_size([*labelled_labs, *target_labs], settings, mpp)
    source_free = settings.source == "none"
    if source_free:
        _require_no_source(kind, labelled_labs)
    labelled = [] if source_free else labelled_samples(labelled_labs, base.config)
    if not any(lab.rows for lab in target_labs):
        raise LabError("Expected images of a target lab to adapt to, found none: give an ingested lab.")
    files = TrainingFiles(folder, training_fingerprint(kind, base, settings, labelled_labs, target_labs, seed))
    files.prepare()
    base.to(fabric.device)
    windows = cut_windows(labelled, files.work / "source", megapixels=_SOURCE_MEGAPIXELS) if labelled else ()
    images = [read_image(file) for file in windows]
    search = settings.search_scale and not source_free  # a scale is found by comparison with source images
    targets = [_target_lab(base, lab, images, files.work, settings, search=search) for lab in target_labs]
    in_use = source_dice(base, labelled_labs)
    if not source_free:
        labelled = with_corrections(labelled, target_labs, base.config, settings.target_label_share)
    unchanged = copy.deepcopy(base.state_dict())
    adaptation = kind(base, labelled, targets, settings, crop=crop, batch=batch, seed=seed, folder=files.work)
    if settings.steps < FEW_STEPS:
        _log.warning(
            "Expected at least %d steps of adaptation, got %d: the first steps make a segmenter worse. "
            "Raise adapt.steps.",
            FEW_STEPS,
            settings.steps,
        )
    elapsed = time.monotonic() - start
    run = partial(
        fit_and_save,
        method=adaptation,
        source=labelled_labs,
        target=target_labs,
        files=files,
        keep_checkpoint=keep_checkpoint,
        elapsed=elapsed,
        in_use=in_use,
        unchanged=unchanged,
    )
    return launch(fabric, run, progress or Progress())


def _open(labs: Sequence[Dataset]) -> list[LabDataset]:
    return [lab if isinstance(lab, LabDataset) else open_lab_dataset(Path(lab)) for lab in labs]


def _target_lab(
    network: PyramidSegmenter,
    lab: LabDataset,
    source: Sequence[npt.NDArray[np.uint8]],
    work: Path,
    settings: AdaptSettings,
    *,
    search: bool,
) -> TargetLab:
    """Cut a target lab's images into windows, and estimate its domain shift."""
    mpp = network.config.mpp
    samples = image_samples(lab, mpp, settings.target_megapixels)
    windows = cut_windows(samples, work / "windows" / lab.metadata.lab, megapixels=settings.target_megapixels)
    unknown = mpp is None or any(row.mpp is None for row in lab.rows)
    images = [read_image(file) for file in windows]
    shift = estimate_domain_shift(network, source, images, search_scale=search and unknown)
    return TargetLab(lab.metadata.lab, windows, shift)


def _require_no_source(kind: type[AdaptationMethod], source: Sequence[LabDataset]) -> None:
    if kind.needs_source:
        raise LabError(
            f"Expected a method that needs no source images with adapt.source: none, got {kind.__name__}: choose "
            "adapt.method=source_free, or adapt.source=labelled and give the source labs."
        )
    if source:
        names = ", ".join(lab.metadata.lab for lab in source)
        raise LabError(
            f"Expected no source lab with adapt.source: none, got {names}: leave it out, or set adapt.source=labelled."
        )


def _with_instances(network: NetworkSettings, labs: Sequence[LabDataset]) -> NetworkSettings:
    """The settings, with the classes whose objects are separated as the labs state them, where the settings do not.

    Raises:
        LabError: There are such classes, but no lab has instance labels.
    """
    if not network.instances:
        stated = [name for name in labs[0].metadata.classes if any(name in lab.metadata.instances for lab in labs)]
        network = network.model_copy(update={"instances": tuple(stated)})
    if network.instances and not any(lab.instances_path(row) for lab in labs for row in lab.rows):
        raise LabError(
            f"Expected instance labels of {', '.join(network.instances)} in instances/ of a lab, found none: ingest "
            "them, or set network.instances to [] and remove instances from lab.yaml."
        )
    return network


def _require_same_meaning(labs: Sequence[LabDataset], config: NetworkConfig) -> None:
    for lab in labs:
        check_channel_names(config.inputs, lab.metadata.channel_names, f"lab {lab.metadata.lab}")
        if lab.metadata.classes != config.classes:
            raise LabError(
                f"Expected lab {lab.metadata.lab} to have the classes {list(config.classes)}, got "
                f"{list(lab.metadata.classes)}: all labs of one segmenter share their classes; correct lab.yaml and "
                "ingest again."
            )
