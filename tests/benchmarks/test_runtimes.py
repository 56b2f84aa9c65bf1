"""The table of runtimes, with a small network."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import runtimes
from microseg.models.files import save_network
from microseg.models.network import PyramidSegmenter


def test_all_runtimes_compute_the_probabilities_of_the_engine(
    tiny_network: Callable[..., PyramidSegmenter], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="pip install 'microseg[onnx]' openvino")
    save_network(tmp_path / "network", tiny_network())
    file = tmp_path / "values.json"
    options = ["--turns", "2", "--tiles", "3", "--tile", "64", "--threads", "2", "--json", str(file)]
    runtimes.main(["--network", str(tmp_path / "network"), *options])
    values = json.loads(file.read_text())
    assert values["seconds"].keys() == {
        "engine", "onnxruntime, 2 x 1", "onnxruntime, 1 x 2", "openvino, 2 x 1", "openvino, 1 x 2",
        "openvino, latency", "openvino, throughput",
    }  # fmt: skip
    for name, seconds in values["seconds"].items():
        assert values["ratio"][name] == [
            base / own for base, own in zip(values["seconds"]["engine"], seconds, strict=True)
        ]
        assert len(seconds) == 2
        assert values["difference"][name] < 1e-5
    assert values["ratio"]["engine"] == [1, 1]
    table = capsys.readouterr().out
    assert "tiles of 64 x 64, 2 threads; median (least to most) of 2 turns of 3 tiles" in table
    assert "| engine |" in table
    assert "| 1.00 (1.00 to 1.00) |" in table


def test_reports_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(SystemExit, match=r"Expected openvino, not installed: pip install 'microseg\[onnx\]' openvino"):
        runtimes.main([])


def test_rejects_zero_turns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runtimes.main(["--turns", "0"])
    assert "--turns: expected at least 1, got 0" in capsys.readouterr().err
