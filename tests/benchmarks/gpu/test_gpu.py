"""The GPU benchmark, on the CPU: its sections run, and what fails is reported."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.correctness import CHECKS, Check, relative_error
from benchmarks.gpu.measure import Results, Setup, repeat
from benchmarks.results import ResultRows


@pytest.mark.parametrize("name", ["losses", "gradient_reversal", "resume"])
def test_checks_pass_on_the_cpu(name: str) -> None:
    for check in CHECKS[name](torch.device("cpu")):
        assert check.passed, check


def test_relative_error_is_that_of_all_values() -> None:
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error([torch.ones(2), torch.zeros(1)], [torch.ones(2), torch.ones(1)]) == pytest.approx(3**-0.5)


def test_error_that_is_no_number_does_not_pass() -> None:
    assert not Check("forward", relative_error(torch.tensor([math.nan]), torch.ones(1)), 1.0).passed


def test_repetitions_leave_out_the_first() -> None:
    calls: list[int] = []
    setup = Setup(torch.device("cpu"), quick=True, folder=Path(), seconds=1)
    assert len(repeat(lambda: calls.append(1), setup, seconds=0, least=3)) == 3
    assert len(calls) == 4


def test_section_that_fails_keeps_its_rows_and_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_chosen: object, folder: Path, name: str, _seconds: float) -> dict[str, object]:
        results = Results(ResultRows(folder / name))
        results.add(f"value of {name}", [1.0, 3.0, 2.0], "MP/s", wanted=1)
        return {"seconds": 1, "error": "lost the device" * (name == "inference"), "rows": results.stored.rows}

    monkeypatch.setattr(gpu, "_run", run)
    file = tmp_path / "gpu.json"
    assert gpu.main(["--only", "inference,training", "--json", str(file), "--folder", str(tmp_path / "data")]) == 1
    report = json.loads(file.read_text())
    assert list(report["sections"]) == ["data", "inference", "training"]
    assert report["sections"]["training"]["rows"][0]["value"] == 2
    printed = capsys.readouterr().out
    assert "| training | value of training | 2 (1 to 3) | MP/s | ≥ 1 |" in printed
    assert "inference FAILED: lost the device" in printed


def test_check_that_does_not_pass_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_chosen: object, folder: Path, name: str, _seconds: float) -> dict[str, object]:
        results = Results(ResultRows(folder / name))
        results.add("forward", 0.5, "error", tolerance=1e-4, passed=False)
        return {"seconds": 1, "error": "", "rows": results.stored.rows}

    monkeypatch.setattr(gpu, "_run", run)
    arguments = ["--only", "correctness", "--json", str(tmp_path / "gpu.json"), "--folder", str(tmp_path / "data")]
    assert gpu.main(arguments) == 1
    assert "checks not passed: ['forward', 'forward']" in capsys.readouterr().out
