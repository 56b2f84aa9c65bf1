import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from microseg.config.training_params import AdaptSettings, TrainSettings
from microseg.datasets.sampling import CropSampler, Sample
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.slides.images import write_png
from microseg.training.adaptation.domain_shift import DomainShift, TargetLab
from microseg.training.adaptation.dual_adaptive import DualAdaptivePyramid
from microseg.training.adaptation.normalization import measure_statistics
from microseg.training.devices import make_fabric
from microseg.training.method import Supervised

SIDE = 16


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return make_fabric("cpu")


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], list[Sample]]:
    """Five labelled source images and four target images of 24 px; the masks of the target lab do not exist."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for lab, count in (("source", 5), ("target", 4)):
        for number in range(count):
            write_png(folder / f"{lab}{number}.png", rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            if lab == "source":
                write_png(folder / f"mask{number}.png", rng.integers(0, 2, (24, 24), dtype=np.uint8))
    source = [Sample(folder / f"source{n}.png", folder / f"mask{n}.png") for n in range(5)]
    return source, [Sample(folder / f"target{n}.png", Path(folder / "nowhere.png")) for n in range(4)]


@pytest.fixture
def source(noise: tuple[list[Sample], list[Sample]]) -> CropSampler:
    return CropSampler(noise[0], size=SIDE, batch=2, seed=3)


@pytest.fixture
def target_lab(noise: tuple[list[Sample], list[Sample]]) -> TargetLab:
    """The target lab, with its batch-norm statistics."""
    network = PyramidSegmenter(
        NetworkConfig(classes=("a", "b"), encoder="blocks", channels=(4, 8), pyramid_bins=(1, 2), pyramid_channels=4)
    )
    statistics = measure_statistics(network, [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))])
    return TargetLab("lab_b", tuple(it.image for it in noise[1]), DomainShift(1.0, statistics, statistics))


@pytest.fixture
def dual_adaptive(
    noise: tuple[list[Sample], list[Sample]],
    target_lab: TargetLab,
    tiny_network: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., DualAdaptivePyramid]:
    """Factory of the method on a tiny network; values override settings."""

    def make(seed: int = 0, **values: Any) -> DualAdaptivePyramid:
        shift = values.pop("shift", target_lab.shift)
        lab = dataclasses.replace(target_lab, shift=shift)
        given = {
            "steps": 8,
            "batch_size": 2,
            "crop_size": SIDE,
            "zoom_range": (1, 1),
            "lambda_image": 0.05,
            "lambda_feature": 0.05,
        }
        settings = AdaptSettings(**given | values)
        folder = tmp_path / "work"
        return DualAdaptivePyramid(
            tiny_network(seed), noise[0], [lab], settings, crop=SIDE, batch=2, seed=3, folder=folder
        )

    return make


@pytest.fixture
def supervised(source: CropSampler, tiny_network: Callable[..., Any]) -> Callable[..., Supervised]:
    """Factory of supervised training on a tiny network; values override settings."""

    def make(seed: int = 0, **values: Any) -> Supervised:
        settings = TrainSettings(**{"steps": 8, "batch_size": 2, "crop_size": SIDE} | values)
        return Supervised(tiny_network(seed), source, settings)

    return make
