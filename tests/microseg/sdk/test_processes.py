"""Training in two processes gives what one gives."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from microseg.data.dataset import Lab
from microseg.model import NetworkConfig, load_network
from microseg.sdk import Progress, adapt, train
from microseg.training import AdaptSettings, TrainSettings, make_fabric


@pytest.mark.long
def test_two_processes_train_as_one(
    labs: tuple[Lab, Lab], tiny_config: Callable[..., NetworkConfig], tmp_path: Path
) -> None:
    losses: dict[int, list[float]] = {}
    for count in (1, 2):
        told: list[float] = []

        def on_step(_step: int, figures: Mapping[str, float], told: list[float] = told) -> None:
            told.append(figures["total"])

        fabric = make_fabric("cpu", devices=count)
        settings = TrainSettings(steps=4, crop=32, batch=8, warmup=0, evaluate_every=2)
        fitted = train(
            labs[:1],
            tiny_config(),
            settings,
            folder=tmp_path / f"train-{count}",
            fabric=fabric,
            progress=Progress(on_step=on_step),
        )
        adapted = adapt(
            fitted.folder,
            labs[:1],
            labs[1:],
            AdaptSettings(steps=2, crop=32, batch=8, warmup=0),
            folder=tmp_path / f"adapt-{count}",
            fabric=make_fabric("cpu", devices=count),
            progress=Progress(on_step=on_step),
        )
        assert adapted.result.steps == 2
        load_network(adapted.folder)
        losses[count] = told
    # each process normalises by its own half of the batch, and jitters colours by itself: near, not equal
    assert len(losses[1]) == len(losses[2]) == 6
    assert losses[2] == pytest.approx(losses[1], rel=0.15)
