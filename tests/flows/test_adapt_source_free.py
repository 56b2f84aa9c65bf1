"""Source images that may not leave their hospital: adaptation, registration and evaluation without them."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.adapt import fit_and_register
from flows.decision import decide
from flows.evaluate import compare_versions
from flows.evidence import evidence_key
from flows.ingest import check_and_ingest, commit_version
from flows.onboard import check_suitability
from flows.train import fit_and_register as train
from flows.workspace import open_workspace
from microseg.config.environment import Home
from microseg.config.settings import load_settings
from microseg.datasets.lab import read_lab_metadata
from microseg.datasets.versions.store import DatasetStore
from microseg.errors import VersioningError
from microseg.training.devices import Progress


def test_adapt_and_evaluate_without_source_images(
    params: Path,
    empty_registry: Path,
    incoming_labs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tasks of the flows, without Prefect: the source lab's dataset is read nowhere, and not needed."""
    home = tmp_path / "home"
    Home(home).create()
    (home / "mlflow").mkdir()
    shutil.copy(empty_registry, home / "mlflow" / "mlflow.db")
    monkeypatch.setenv("MICROSEG_HOME", str(home))
    monkeypatch.setenv("MICROSEG_PARAMS", str(params))
    for module in ("train", "adapt"):  # without Prefect's server
        monkeypatch.setattr(f"flows.{module}.training_progress", lambda *_: nullcontext(Progress()))
    settings = load_settings(("adapt.source=none",))
    digests = {}
    for folder in incoming_labs:
        check_and_ingest.fn(folder, read_lab_metadata(folder), settings)
        digests[folder.name] = commit_version.fn(folder.name, settings)
    base = train.fn({"lab_a": digests["lab_a"]}, settings)

    checkout = DatasetStore.checkout

    def elsewhere(self: DatasetStore, lab: str, digest: str) -> Path:
        if lab == "lab_a":
            raise VersioningError("lab_a is at another hospital")
        return checkout(self, lab, digest)

    open_workspace.cache_clear()
    monkeypatch.setattr(DatasetStore, "checkout", elsewhere)
    assert check_suitability.fn(base, "lab_b", digests["lab_b"], settings) is None  # unknown
    version = fit_and_register.fn(base, "lab_b", digests["lab_b"], settings)
    assert version.source_free
    assert version.tags["method"] == "source_free"
    assert version.datasets == digests  # also that of the base
    workspace = open_workspace(settings)
    known = workspace.registry.versions.reference_distribution(version)
    assert known is not None
    assert known.labs.keys() == {"lab_a", "lab_b"}  # images of the source lab stay known

    decision = decide(
        workspace,
        version,
        base,
        compare_versions.fn(version, base, evidence_key(workspace, version, base, "lab_b"), settings),
    )
    assert decision.status == "refused"
    assert any("No Dice of a source lab is known" in message for message in decision.reasons)

    monkeypatch.setattr(DatasetStore, "checkout", checkout)  # where the source images are
    open_workspace.cache_clear()
    assert compare_versions.fn(
        version, base, evidence_key(workspace, version, base, "lab_b"), settings
    ).candidate.source_dice.keys() == {"lab_a"}
