import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from microseg.api import training_files
from microseg.datasets.dataset import LabDataset
from microseg.models.files import load_network, save_network, weights_digest
from microseg.models.network import PyramidSegmenter
from microseg.training.devices import Progress
from microseg.training.loop import TrainingResult


def stop_at(step: int) -> Progress:
    def on_step(done: int, _losses: Mapping[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return Progress(on_step=on_step)


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f"{folder.name}.*.checkpoint"))


def first_step(make: Callable[..., TrainingResult], *arguments: Any, **values: Any) -> int:
    """Number of the first step of a training that is then interrupted."""
    steps: list[int] = []

    def stop(step: int, _losses: Mapping[str, float]) -> None:
        steps.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(*arguments, progress=Progress(on_step=stop), **values)
    return steps[0]


@pytest.mark.parametrize("kind", ["train", "adapt"])
def test_interrupted_run_is_resumed(
    kind: str,
    fit: Callable[..., TrainingResult],
    fit_to_target: Callable[..., TrainingResult],
    tiny_network: Callable[..., Any],
    tmp_path: Path,
) -> None:
    save_network(tmp_path / "base", tiny_network())

    def make(folder: str, **values: Any) -> TrainingResult:
        return fit(folder, **values) if kind == "train" else fit_to_target(tmp_path / "base", folder, **values)

    whole = make("whole")
    with pytest.raises(KeyboardInterrupt):
        make("parts", progress=stop_at(2))
    assert len(checkpoints(tmp_path / "parts")) == 1
    assert not (tmp_path / "parts").exists()
    steps: list[int] = []
    parts = make("parts", progress=Progress(on_step=lambda step, _losses: steps.append(step)))
    assert steps == [2, 3]
    assert not checkpoints(tmp_path / "parts")
    assert ((tmp_path / "parts") / "weights.safetensors").read_bytes() == (
        (tmp_path / "whole") / "weights.safetensors"
    ).read_bytes()
    assert parts.evaluations == whole.evaluations


def test_checkpoint_remains_until_the_network_is_written(
    fit: Callable[..., TrainingResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path, network: PyramidSegmenter) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_files, "save_network", full)
        with pytest.raises(OSError, match="No space"):
            fit()
    assert len(checkpoints(tmp_path / "first")) == 1
    steps: list[int] = []
    fit(progress=Progress(on_step=lambda step, _losses: steps.append(step)))
    assert steps == []


def test_checkpoint_is_kept_on_request(fit: Callable[..., TrainingResult], tmp_path: Path) -> None:
    """A caller that registers the network removes it after that."""
    first = fit(keep_checkpoint=True)
    steps: list[int] = []
    assert fit(keep_checkpoint=True, progress=Progress(on_step=lambda step, _losses: steps.append(step))) == first
    assert steps == []
    assert len(checkpoints(tmp_path / "first")) == 1


def test_checkpoint_of_another_initial_network_is_not_resumed(
    fit_to_target: Callable[..., TrainingResult], tiny_network: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_to_target(tiny_network(0), progress=stop_at(2))
    assert first_step(fit_to_target, tiny_network(1)) == 1
    assert "of an unfinished training with other settings or data was removed" in caplog.text


def test_checkpoint_of_other_settings_or_masks_is_not_resumed(
    fit_to_target: Callable[..., TrainingResult], tiny_network: Callable[..., Any], source_lab: LabDataset
) -> None:
    """Later images of a lab must not fail because of an adaptation that was interrupted before."""
    rows = tuple(dataclasses.replace(row, mask=None) if row.split == "val" else row for row in source_lab.rows)
    for changed in (
        {"learning_rate": 0.5},
        {"source": [dataclasses.replace(source_lab, rows=rows)]},
    ):
        with pytest.raises(KeyboardInterrupt):
            fit_to_target(tiny_network(0), progress=stop_at(2))
        assert first_step(fit_to_target, tiny_network(0), **changed) == 1


def test_network_stays_as_it_is_where_the_time_limit_allows_few_steps(
    fit_to_target: Callable[..., TrainingResult],
    tiny_network: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = tiny_network()
    result = fit_to_target(base, steps=1000, max_minutes=1e-5)
    assert (result.stopped, result.best_step, result.steps) == ("minutes", 0, 1)
    assert weights_digest(load_network(tmp_path / "adapted")) == weights_digest(base)
    assert "Expected time for at least 60 steps" in caplog.text
    assert "adapt.max_minutes" in caplog.text
