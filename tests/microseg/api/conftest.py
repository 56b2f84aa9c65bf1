"""Short trainings of a tiny network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric import Fabric

from microseg.api.training import adapt, train
from microseg.config.training_params import AdaptSettings, NetworkSettings, TrainSettings
from microseg.datasets.dataset import LabDataset
from microseg.models.network import PyramidSegmenter
from microseg.training.devices import make_fabric
from microseg.training.loop import TrainingResult

SHORT = {
    "steps": 3,
    "batch_size": 2,
    "crop_size": 32,
    "warmup_steps": 1,
    "evaluate_every": 2,
    "checkpoint_every": 1,
    "ema_decay": 0.9,
}


TINY = NetworkSettings(encoder="blocks", channels=(4, 8), pyramid_bins=(1, 2), pyramid_channels=4, weights=None)


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return make_fabric("cpu")


@pytest.fixture
def fit(labs: tuple[LabDataset, LabDataset], fabric: Fabric, tmp_path: Path) -> Callable[..., TrainingResult]:
    def make(folder: str = "first", **values: Any) -> TrainingResult:
        progress, keep = values.pop("progress", None), values.pop("keep_checkpoint", False)
        return train(
            labs[:1],
            TINY,
            TrainSettings(**SHORT | values),
            folder=tmp_path / folder,
            fabric=fabric,
            progress=progress,
            keep_checkpoint=keep,
        )

    return make


@pytest.fixture
def fit_to_target(labs: tuple[LabDataset, LabDataset], fabric: Fabric, tmp_path: Path) -> Callable[..., TrainingResult]:
    def make(base: PyramidSegmenter | Path, folder: str = "adapted", **values: Any) -> TrainingResult:
        progress, source, target = (values.pop(name, None) for name in ("progress", "source", "target"))
        return adapt(
            base,
            source or labs[:1],
            target or labs[1:],
            AdaptSettings(**SHORT | values),
            folder=tmp_path / folder,
            fabric=fabric,
            progress=progress,
        )

    return make
