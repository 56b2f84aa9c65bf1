"""What is killed or finds the disk full: each scenario prepares a folder, acts, and describes the state."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from microseg import limits

__all__ = ["SCENARIOS", "Scenario"]


@dataclass(frozen=True)
class Scenario:
    """Something that writes.

    Attributes:
        prepare: Creates what it needs in an empty folder.
        act: Does it; doing it again after it was interrupted must lead to the same state.
        state: Describes what counts in the folder, and what must not be left.
        modules: What it imports.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    state: Callable[[Path], Any]
    modules: tuple[str, ...] = ()


def _same_process(_what: str, function: Callable[..., Any], *args: Any, **_limits: Any) -> Any:
    return function(*args)


limits.run_limited = _same_process  # type: ignore[assignment]  # a fork counts the writes, not its child processes


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _left(folder: Path) -> list[str]:
    """Files that an interrupted process may leave, and that the next one must remove."""
    return sorted(p.name for p in folder.rglob("*") if p.name.endswith((".part", ".partial", ".new", ".old")))


def _pixels(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (32, 40, 3), np.uint8)


# ---- ingest


def _incoming(folder: Path) -> None:
    from microseg.datasets.ingest import ingest_lab

    for batch, names in (("first", "ab"), ("second", "cde")):
        source = folder / batch
        for part in ("images", "masks"):
            (source / part).mkdir(parents=True)
        for name in names:
            Image.fromarray(_pixels(ord(name))).save(source / "images" / f"{name}.png")
            mask = np.zeros((32, 40), np.uint8)
            mask[4:20, 5:30] = 1
            Image.fromarray(mask).save(source / "masks" / f"{name}.png")
        (source / "lab.yaml").write_text("lab: north\nstain: H&E\nclasses: [background, gland]\n")
    (folder / "second" / "images" / "bad.png").write_bytes(b"no image")
    ingest_lab(folder / "first", folder / "labs", folder / "quarantine")


def _ingest(folder: Path) -> None:
    from microseg.datasets.ingest import ingest_lab

    ingest_lab(folder / "second", folder / "labs", folder / "quarantine")


def _dataset(folder: Path) -> Any:
    from microseg.datasets.dataset import open_lab_dataset

    lab = open_lab_dataset(folder / "labs" / "north")
    reasons = (folder / "quarantine" / "north" / "reasons.csv").read_text().splitlines()
    return {
        "rows": [(row.image, row.mask, row.split, row.sha256) for row in lab.rows],
        "files": {str(path.relative_to(lab.folder)): _digest(path) for path in lab.folder.rglob("*.png")},
        "rejected": sorted(line.split(",")[0] for line in reasons),
        "kept": (folder / "quarantine" / "north" / "images" / "bad.png").read_bytes(),
        "left": _left(folder),
    }


# ---- segment and export


def _network() -> Any:
    import torch

    from microseg.models.config import NetworkConfig
    from microseg.models.network import PyramidSegmenter

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = NetworkConfig(
        classes=("background", "gland"), encoder="blocks", channels=(4, 6), pyramid_bins=(1,), pyramid_channels=4
    )
    return PyramidSegmenter(config).eval()


def _images(folder: Path) -> None:
    (folder / "in").mkdir()
    for number in range(3):
        Image.fromarray(_pixels(number)).save(folder / "in" / f"{number}.png")


def _segment(folder: Path) -> None:
    from microseg.inference.batch import segment_batch
    from microseg.inference.engine import Engine
    from microseg.outputs.record import Provenance

    engine = Engine(_network(), tile=128, halo=16, batch=1, optimize=False)
    segment_batch(engine, sorted((folder / "in").iterdir()), folder / "out", provenance=Provenance(model="m/1"))


def _outputs(folder: Path) -> Any:
    import pandas as pd

    from microseg.outputs.record import read_record

    out = folder / "out"
    records = {name: read_record(out / f"{name}.json").outputs for name in ("0", "1", "2")}
    return {
        "labels": {name: _digest(out / files["labels"]) for name, files in records.items()},
        "complete": all((out / file).is_file() for files in records.values() for file in files.values()),
        "images": pd.read_csv(out / "summary.csv")["image"].tolist(),
        "objects": len(pd.read_csv(out / "measurements.csv")),
        "files": sorted(path.name for path in out.iterdir() if path.name != ".image-identities"),
    }


def _export(folder: Path) -> None:
    from microseg.models.export.formats import export_model

    export_model(_network(), folder / "out" / "model.pt", kind="torchscript", tile=32)


def _exported(folder: Path) -> Any:
    import torch

    with torch.inference_mode():
        result = torch.jit.load(folder / "out" / "model.pt")(torch.zeros(1, 3, 32, 32))
    return {"sum": round(float(result.double().sum()), 4), "whole": (folder / "out" / "model.pt").stat().st_size > 0}


# ---- the registry


def _registry(folder: Path) -> Any:
    from microseg.registry.registry import Registry

    return Registry(f"sqlite:///{folder / 'mlflow.db'}")


def _versions(folder: Path) -> None:
    from microseg.models.files import save_network

    registry = _registry(folder)
    for number in (1, 2):
        save_network(folder / "network", _network())
        with registry.runs.start(f"train {number}") as run:
            run.log_dataset("lab_a", "0" * 32 + ".dir", "/remote", "source")
            registry.versions.register(
                run, folder / "network", example=np.zeros((32, 32, 3), np.uint8), method="m", description="d"
            )
    registry.production.promote(1)


def _promote(folder: Path) -> None:
    registry = _registry(folder)
    registry.production.observe()
    if registry.production.active().version != 2:
        registry.production.promote(2)


def _roll_back(folder: Path) -> None:
    registry = _registry(folder)
    registry.production.observe()
    if registry.production.active().version != 1:
        registry.production.roll_back()


def _second_in_production(folder: Path) -> None:
    _versions(folder)
    _registry(folder).production.promote(2)


def _production(folder: Path) -> Any:
    registry = _registry(folder)
    registry.production.observe()
    return {
        "active": registry.production.active().version,
        "versions": [version.version for version in registry.versions.all()],
        "history": [(entry.action, entry.version) for entry in registry.production.history()],
        "pending": len(registry.production.pending_changes()),
        "running": _running(registry),
    }


def _running(registry: Any) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=registry.tracking_uri)
    experiments = [it.experiment_id for it in client.search_experiments()]
    return len(client.search_runs(experiments, "attributes.status = 'RUNNING'"))


def _evaluate(folder: Path) -> None:
    registry = _registry(folder)
    (folder / "panel.jpg").write_bytes(b"panel")
    registry.versions.log_metrics(2, {"dice/lab_a": 0.9}, dataset=("lab_a", "0" * 32 + ".dir"))
    registry.attachments.add(2, [folder / "panel.jpg"], "evaluation")
    registry.versions.describe(2, "the card")
    registry.versions.set_tags(2, {"gate": "accepted"})


def _evaluated(folder: Path) -> Any:
    registry = _registry(folder)
    version = registry.versions.find(2)
    return {
        "description": version.description,
        "gate": version.tags["gate"],
        "panels": registry.attachments.paths(2, "evaluation", ".jpg"),
        "production": _production(folder),
    }


# ---- adapt: the task of the flow, without Prefect's server

_TINY = (
    "device=cpu", "network.encoder=blocks", "network.weights=null", "network.channels=[4,8]",
    "network.pyramid_bins=[1]", "network.pyramid_channels=4", "inference.tile_size=64", "inference.halo=8",
    "train.steps=2", "train.crop_size=32", "train.batch_size=2", "train.warmup_steps=0", "gate.min_initial_dice=0",
    "adapt.steps=2", "adapt.crop_size=32", "adapt.batch_size=2", "adapt.warmup_steps=0",
)  # fmt: skip


def _settings(folder: Path) -> Any:
    """Settings of a home in the folder; training shows no progress."""
    from contextlib import nullcontext

    import flows.adapt
    import flows.train
    from microseg.config.settings import load_settings
    from microseg.training.devices import Progress

    os.environ["MICROSEG_HOME"] = str(folder / "home")
    for module in (flows.adapt, flows.train):
        module.training_progress = lambda *_: nullcontext(Progress())  # type: ignore[attr-defined]
    return load_settings(_TINY)


def _trained(folder: Path) -> None:
    from flows.ingest import check_and_ingest, commit_version
    from flows.train import fit_and_register
    from microseg.config.environment import Home
    from microseg.datasets.lab import read_lab_metadata
    from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab

    home = folder / "home"
    Home(home).create()
    settings = _settings(folder)
    digests = {}
    for lab, style, labelled in (("lab_a", LAB_A, True), ("lab_b", LAB_B, False)):
        source = generate_lab(folder / "in" / lab, style, images=4, size=64, labelled=labelled, test_images=1, seed=0)
        check_and_ingest.fn(source, read_lab_metadata(source), settings)
        digests[lab] = commit_version.fn(lab, settings)
    fit_and_register.fn({"lab_a": digests["lab_a"]}, settings)
    (folder / "digest").write_text(digests["lab_b"])


def _adapt(folder: Path) -> None:
    from flows.adapt import fit_and_register
    from flows.workspace import open_workspace

    settings = _settings(folder)
    registry = open_workspace(settings).registry
    if "candidate-lab_b" not in {alias for version in registry.versions.all() for alias in version.aliases}:
        fit_and_register.fn(registry.versions.find(1), "lab_b", (folder / "digest").read_text(), settings)


def _adapted(folder: Path) -> Any:
    from flows.workspace import open_workspace

    registry = open_workspace(_settings(folder)).registry
    registry.runs.end_abandoned()
    version = registry.versions.find("candidate-lab_b")
    registry.versions.download(version, folder / "check")
    return {
        "versions": [it.version for it in registry.versions.all()],
        "candidate": version.version,
        "datasets": dict(version.datasets),
        "tags": sorted(version.tags),
        "described": "lab_b" in version.description,
        "running": _running(registry),
        "left": sorted(path.name for path in (folder / "home" / "runs").rglob("*") if path.is_file()),
    }


_IMAGES = ("microseg.datasets.ingest",)
_NETWORK = ("microseg.inference.batch", "microseg.models.network", "pandas")
_EXPORT = (*_NETWORK, "microseg.models.export.formats")
_REGISTRY = (*_NETWORK, "mlflow", "sqlalchemy", "microseg.models.files", "microseg.registry.registry")

SCENARIOS: Mapping[str, Scenario] = {
    "ingest": Scenario(_incoming, _ingest, _dataset, _IMAGES),
    "segment": Scenario(_images, _segment, _outputs, _NETWORK),
    "export": Scenario(lambda folder: (folder / "out").mkdir(), _export, _exported, _EXPORT),
    "adapt": Scenario(
        _trained, _adapt, _adapted, (*_REGISTRY, "flows.adapt", "flows.train", "flows.ingest", "dvc.repo")
    ),
    "evaluate": Scenario(_versions, _evaluate, _evaluated, _REGISTRY),
    "promote": Scenario(_versions, _promote, _production, _REGISTRY),
    "rollback": Scenario(_second_in_production, _roll_back, _production, _REGISTRY),
}
