from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from microseg.data.colour import ColourStatistics, colour_statistics
from microseg.data.images import write_png
from microseg.data.sampling import CropSampler, Sample
from microseg.training import AdaptSettings, DualAdaptive, Supervised, TrainSettings, make_fabric

SIDE = 16


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return make_fabric("cpu")


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], list[Sample]]:
    """Five labelled images and four of another lab, of 24 px; the masks of the other lab do not exist."""
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
def target(noise: tuple[list[Sample], list[Sample]]) -> CropSampler:
    return CropSampler(noise[1], size=SIDE, batch=2, seed=4)


@pytest.fixture
def colours() -> ColourStatistics:
    return colour_statistics(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def dual_adaptive(
    source: CropSampler, target: CropSampler, colours: ColourStatistics, tiny_network: Callable[..., Any]
) -> Callable[..., DualAdaptive]:
    """Makes the method on a tiny network; values replace those of the settings."""

    def make(seed: int = 0, **values: Any) -> DualAdaptive:
        all_on = {"lambda_image": 0.05, "lambda_feature": 0.05, "consistency": 1.0, "consistency_from": 0.0}
        settings = AdaptSettings(**{"steps": 8, "batch": 2, "crop": SIDE, "threshold": 0.5} | all_on | values)
        return DualAdaptive(tiny_network(seed), source, target, colours, settings)

    return make


@pytest.fixture
def supervised(source: CropSampler, tiny_network: Callable[..., Any]) -> Callable[..., Supervised]:
    """The same for supervised training."""

    def make(seed: int = 0, **values: Any) -> Supervised:
        settings = TrainSettings(**{"steps": 8, "batch": 2, "crop": SIDE} | values)
        return Supervised(tiny_network(seed), source, settings)

    return make
