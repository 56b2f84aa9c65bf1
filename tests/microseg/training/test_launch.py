from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from microseg.api.training import adapt
from microseg.config.params import AdaptSettings
from microseg.datasets.dataset import LabDataset
from microseg.models.files import load_network
from microseg.training.devices import make_fabric
from microseg.training.launch import Progress, launch

Told = list[tuple[str, int, Mapping[str, float]]]


def listen(told: Told) -> Progress:
    return Progress(lambda *it: told.append(("step", *it)), lambda *it: told.append(("evaluation", *it)))


def work(fabric: Fabric, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Each process adds its number to what it was given; all tell, the first one is heard."""
    job["tensor"] += fabric.global_rank + 1
    progress.on_step(fabric.global_rank, {"world": fabric.world_size})
    progress.on_evaluation(fabric.global_rank, {})
    total = fabric.all_reduce(job["tensor"].clone(), reduce_op="sum")
    return {"rank": fabric.global_rank, "total": float(total), "answer": job["answer"]}  # type: ignore[arg-type]


def test_one_process_is_this_one() -> None:
    told: Told = []
    job = {"tensor": torch.zeros(()), "answer": object()}
    result = launch(make_fabric("cpu"), work, job, listen(told))
    assert result == {"rank": 0, "total": 1.0, "answer": job["answer"]}
    assert told == [("step", 0, {"world": 1}), ("evaluation", 0, {})]


def test_errors_come_through() -> None:
    def fail(_fabric: Fabric, _job: None, _progress: Progress) -> None:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        launch(make_fabric("cpu"), fail, None, Progress())


@pytest.mark.long
def test_two_processes() -> None:
    """Each has a job of its own, and the caller is told once."""
    told: Told = []
    job = {"tensor": torch.zeros(()), "answer": 42}
    result = launch(make_fabric("cpu", devices=2), work, job, listen(told))
    assert result == {"rank": 0, "total": 1.0 + 2.0, "answer": 42}
    assert told == [("step", 0, {"world": 2}), ("evaluation", 0, {})]
    assert job["tensor"] == 0


@pytest.mark.long
def test_two_processes_adapt_one_network(
    labs: tuple[LabDataset, LabDataset], tiny_network: Callable[..., Any], tmp_path: Path
) -> None:
    numbers = {"steps": 3, "batch_size": 2, "crop_size": 32, "evaluate_every": 2, "max_minutes": 60}
    settings = AdaptSettings(**numbers)  # type: ignore[arg-type]

    def run(folder: str) -> tuple[Told, dict[str, torch.Tensor]]:
        told: Told = []
        fabric = make_fabric("cpu", devices=2)
        fitted = adapt(
            tiny_network(), labs[:1], labs[1:], settings, folder=tmp_path / folder, fabric=fabric, progress=listen(told)
        )
        assert not list(tmp_path.glob("*.checkpoint"))
        return told, load_network(fitted.folder).state_dict()

    told, weights = run("one")
    assert [(kind, step) for kind, step, _ in told] == [
        ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("evaluation", 3)
    ]  # fmt: skip
    assert told[0][2].keys() >= {"total", "domain_image", "domain_feature", "pseudo_labels"}
    again, same = run("other")
    # where minutes are set the strength of the adversaries follows the clock, so the two are nearly the same
    assert [it[:2] for it in again] == [it[:2] for it in told]
    for (_, _, values), (_, _, others) in zip(told, again, strict=True):
        assert others == pytest.approx(values, rel=1e-6)
    torch.testing.assert_close(same, weights)
