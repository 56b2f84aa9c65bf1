"""dvc.yaml fits the flows: every stage calls a flow with valid arguments, and its dependencies exist."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).parent.parent
TINY = {
    "device": "cpu",
    "network": {
        "encoder": "blocks",
        "weights": None,
        "channels": [4, 8],
        "pyramid_bins": [1, 2],
        "pyramid_channels": 4,
    },
    "train": {"steps": 2, "crop_size": 32, "batch_size": 2, "warmup_steps": 0},
    "adapt": {"steps": 2, "crop_size": 32, "batch_size": 2, "warmup_steps": 0},
    "gate": {"max_source_loss": 1.0, "min_criterion_gain": 1.0},
    "inference": {"tile_size": 64, "halo": 8},
    "demo": {"images_a": 8, "images_b": 4, "test_images": 2, "image_size": 64},
}


def copy_pipeline(checkout: Path) -> Path:
    checkout.mkdir()
    (checkout / ".dvc").mkdir()
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config"):
        shutil.copy(ROOT / name, checkout / name)
    return checkout


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The stages as DVC reads them, from a copy, so that nothing is written into the checkout."""
    checkout = copy_pipeline(tmp_path_factory.mktemp("pipeline") / "check out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        repo = Repo(str(checkout))
        found = {stage.addressing: stage for stage in repo.index.stages}
        repo.close()
    return found


def lines(stage: Any) -> list[str]:
    return [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd


def paths(items: list[Any]) -> set[str]:
    return {item.def_path for item in items if item.def_path != "params.yaml"}


def calls(stages: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Stage, flow, and the arguments that it is called with."""
    found = []
    for name, stage in stages.items():
        for line in lines(stage):
            if match := re.search(r"python -m flows\.(\w+) (.*?)(?: \|\| .*)?$", line):
                found.append((name, match[1], shlex.split(match[2])))
    return found


def test_stages_are_the_steps_of_the_demo_in_order(stages: dict[str, Any]) -> None:
    flows = [flow for _, flow, _ in calls(stages) if flow != "pipeline"]
    assert flows == ["ingest", "ingest", "train", "adapt", "evaluate", "promote", "segment"]
    done: set[str] = set()
    for stage in stages.values():
        needed = {path for path in paths(stage.deps) if path.startswith("var/")}
        assert all(any(path == out or path.startswith(f"{out}/") for out in done) for path in needed), stage
        done |= paths(stage.outs)


def test_every_stage_calls_a_flow_with_valid_arguments(stages: dict[str, Any]) -> None:
    for stage, flow, arguments in calls(stages):
        module = importlib.import_module(f"flows.{flow}")
        app = getattr(module, "app", None)
        if app is None:
            app = typer.Typer()
            app.command()(module.command)
        command = typer.main.get_command(app)
        if hasattr(command, "commands"):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        context = command.make_context(flow, list(arguments))  # refuses what it does not know
        if record := context.params.get("record"):
            assert str(record) in paths([*stages[stage].outs, *stages[stage].deps])


def test_every_command_uses_the_home_of_the_pipeline(stages: dict[str, Any]) -> None:
    """And not the servers, datasets or parameters of the user's environment."""
    for stage in stages.values():
        for line in lines(stage):
            if "python" in line:
                assert line.startswith(
                    "env MICROSEG_HOME=var/pipeline/home MICROSEG_PARAMS=params.yaml MICROSEG_DVC_REMOTE= "
                    "MLFLOW_TRACKING_URI= python -m flows."
                )
            else:
                assert line.startswith("rm -rf var/pipeline/home/")


def test_dependencies_exist_and_all_parameters_are_tracked(stages: dict[str, Any]) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    tracked: set[str] = set()
    for stage in stages.values():
        for path in paths(stage.deps):
            assert path.startswith("var/") or (ROOT / path).exists(), path
        tracked |= {name for item in stage.params for name in item.params}
    assert tracked == set(params) - {"schedule", "onboarding", "promotion", "notify"}  # of the service


def test_a_stage_depends_on_its_flow(stages: dict[str, Any]) -> None:
    for stage, flow, _ in calls(stages):
        if flow != "pipeline":
            assert f"flows/{flow}.py" in paths(stages[stage].deps)


def test_outputs_are_not_cached(stages: dict[str, Any]) -> None:
    """The record of an earlier run would name another version than the one with the alias."""
    for stage in stages.values():
        assert all(not out.use_cache for out in stage.outs)


class Pipeline:
    """A copy of the checkout with tiny parameters, in a folder with a space in its name."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = copy_pipeline(checkout)
        for package in ("flows", "microseg"):
            shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.params = yaml.safe_load((checkout / "params.yaml").read_text())
        for section, values in TINY.items():
            self.params[section] = {**self.params[section], **values} if isinstance(values, dict) else values
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "MICROSEG_"))
        }
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.environment['PATH']}"
        # variables of the user's shell must not matter
        self.environment |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MICROSEG_PARAMS": "elsewhere.yaml"}

    def repro(self) -> str:
        (self.checkout / "params.yaml").write_text(yaml.safe_dump(self.params))
        command = [sys.executable, "-m", "dvc", "repro"]
        done = subprocess.run(
            command, cwd=self.checkout, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def record(self, name: str) -> Any:
        return json.loads((self.checkout / "var" / "pipeline" / f"{name}.json").read_text())


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '([\w@]+)'", output)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_reproduces_only_what_has_changed(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "check out")
    everything = ["labs", "ingest@lab_a", "ingest@lab_b", "train", "adapt", "evaluate", "promote", "segment"]
    assert ran(pipeline.repro()) == everything
    assert pipeline.record("adapt")["datasets"]["lab_a"] == pipeline.record("ingest-lab_a")["digest"]
    assert (pipeline.record("promote")["accepted"], pipeline.record("segment")["models"]) == (
        False,
        ["microseg-segmenter/1"],
    )
    assert pipeline.record("segment")["done"] == 4

    assert "Data and pipelines are up to date." in pipeline.repro()

    pipeline.params["gate"] |= {"min_criterion_gain": -1.0, "min_foreground_ratio": 1e-9, "max_foreground_ratio": 1e9}
    pipeline.params["gate"] |= {"max_foreground_change": 1e9, "max_forward_validation_loss": 1.0, "collapse_share": 0.0}
    assert ran(pipeline.repro()) == ["promote", "segment"]
    assert (pipeline.record("promote")["accepted"], pipeline.record("segment")["models"]) == (
        True,
        ["microseg-segmenter/2"],
    )

    # version 2 is in production now, yet the adaptation begins where it began before, and so does the judgment
    pipeline.params["adapt"]["steps"] = 3
    assert ran(pipeline.repro()) == ["adapt", "evaluate", "promote", "segment"]
    assert (pipeline.record("adapt")["tags"]["base_version"], pipeline.record("adapt")["version"]) == ("1", 3)
    assert (pipeline.record("evaluate")["decision"]["production_version"], pipeline.record("promote")["version"]) == (
        1,
        3,
    )

    # fewer images: nothing of the larger dataset is left over
    pipeline.params["demo"]["images_b"] = 2
    assert ran(pipeline.repro()) == ["labs", "ingest@lab_b", "adapt", "evaluate", "promote", "segment"]
    assert pipeline.record("ingest-lab_b")["images"] == pipeline.record("segment")["images"] == 2

    written = {path.name for path in pipeline.checkout.iterdir()} - {"flows", "microseg"}
    assert written == {".dvc", ".dvcignore", "dvc.lock", "dvc.yaml", "params.yaml", "var"}
