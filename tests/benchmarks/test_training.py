"""Both ways to take a step, on a small network."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import training
from microseg.model import PyramidSegmenter, save_network


def test_both_take_the_same_steps(
    tiny_network: Callable[..., PyramidSegmenter], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_network(tmp_path / "network", tiny_network())
    file = tmp_path / "figures.json"
    options = ["--turns", "2", "--steps", "3", "--crop", "32", "--json", str(file)]
    training.main(["--network", str(tmp_path / "network"), *options])
    figures = json.loads(file.read_text())
    assert figures["loss"]["microseg"] == pytest.approx(figures["loss"]["PyTorch"], rel=0.02)
    pairs = zip(figures["seconds"]["PyTorch"], figures["seconds"]["microseg"], strict=True)
    assert figures["ratio"] == [base / own for base, own in pairs]
    assert len(figures["ratio"]) == 2
    table = capsys.readouterr().out
    assert "blocks, crops of 32 x 32" in table
    assert "| PyTorch | " in table


def test_too_few_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--steps", "2"])
    assert "--steps: expected at least 3, got 2" in capsys.readouterr().err
