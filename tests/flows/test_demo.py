"""The demo on tiny labs: its report as JSON and as a page."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from flows.demo import command, make_labs
from microseg.config.settings import load_settings

KEYS = {"dice", "upper_bound", "decision", "production_version", "seconds", "outputs"}


@pytest.fixture
def finished(fresh: Path, run: Callable[..., Result]) -> tuple[Path, str]:
    result = run(command, "--seed", "3")
    assert result.exit_code == 0, result.output
    return fresh, result.stdout


def test_demo_writes_its_report(finished: tuple[Path, str]) -> None:
    home, text = finished
    report = json.loads((home / "demo" / "report.json").read_text())
    assert report.keys() >= KEYS
    assert report["dice"].keys() == {"lab_a", "lab_b"}
    for change in report["dice"].values():
        assert change.keys() == {"before", "after"}
        assert all(0 <= value <= 1 for value in change.values())
    assert report["production_version"] == (2 if report["decision"]["accepted"] else 1)
    assert report["decision"]["reasons"]
    assert report["batch"] == {"images": 4, "done": 4, "skipped": 0, "failed": 0}
    for output in report["outputs"].values():
        assert Path(output).exists()
        assert Path(output).is_relative_to(home)
    assert f"version {report['production_version']} is in production" in " ".join(text.split())

    page = (home / "demo" / "report.html").read_text()
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]*)", page)
    assert len(sources) >= 4
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.findall(r"<script|<link|url\(|@import", page)
    for digest in re.findall(r"[0-9a-f]{32}\.dir", json.dumps(report["lineage"])):
        assert digest in page


def test_each_demo_generates_its_labs_again(fresh: Path) -> None:
    first = make_labs.fn(load_settings(("demo.images_a=3", "demo.images_b=2")))
    second = make_labs.fn(load_settings(("demo.images_a=2", "demo.images_b=2")))
    assert first == second
    assert len(list((second[0] / "images").iterdir())) == 2
    assert (second[0] / "test" / "masks").is_dir()
    assert not (second[1] / "masks").exists()
