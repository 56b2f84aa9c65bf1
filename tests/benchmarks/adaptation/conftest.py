from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microseg.config.training_params import AdaptSettings
from microseg.datasets.sampling import Sample
from microseg.slides.images import write_png
from microseg.training.adaptation.domain_shift import DomainShift, TargetLab
from microseg.training.adaptation.normalization import read_statistics

Make = Callable[..., Any]


@pytest.fixture
def make(tiny_network: Callable[..., Any], tmp_path: Path) -> Make:
    """Factory of methods on a tiny network and two labs of two images of noise; values override settings."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for file in files:
        write_png(file, rng.integers(60, 200, (32, 32, 3), dtype=np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 1
    write_png(tmp_path / "mask.png", mask)
    statistics = read_statistics(tiny_network())
    lab = TargetLab("lab_b", tuple(files[2:]), DomainShift(1.0, statistics, statistics))
    source = [Sample(file, tmp_path / "mask.png") for file in files[:2]]
    off = {"lambda_image": 0, "lambda_feature": 0, "pseudo_label_weight": 0, "normalization": "running"}

    def build(kind: type, **values: Any) -> Any:
        settings = AdaptSettings(**{"steps": 8, "zoom_range": (1, 1), **off, **values})
        given = [] if settings.source == "none" else source
        return kind(tiny_network(), given, [lab], settings, crop=32, batch=2, seed=0, folder=tmp_path / "work")

    return build


@pytest.fixture
def descend() -> Callable[..., tuple[float, float]]:
    """Optimizes a method on one batch; returns its total loss before and after."""

    def run(method: Any, steps: int = 10) -> tuple[float, float]:
        optimizer = torch.optim.Adam(method.parameter_groups(), lr=1e-2)
        batch = method.inputs(0)
        totals = []
        for step in range(steps + 1):
            method.train()
            torch.manual_seed(0)  # of dropout
            losses = method(batch, 0.5)
            assert all(torch.isfinite(value) for value in losses.values())
            totals.append(losses["total"].item())
            optimizer.zero_grad()
            losses["total"].backward()
            optimizer.step()
            if step < steps:
                method.after_step(step)
        return totals[0], totals[-1]

    return run
