"""Registering, finding, downloading and describing model versions."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import mlflow
import numpy as np
import pytest
import torch

from microseg.datasets.appearance import APPEARANCE_FEATURES
from microseg.errors import RegistryError, VersionNotFoundError, WeightsError
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from microseg.models.files import load_network
from microseg.models.reference_distribution import LabDistribution, ReferenceDistribution
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, MODEL_NAME, PREVIOUS, PRODUCTION
from tests.microseg.registry.conftest import DIGEST_A, DIGEST_B, client_of


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.version for version in registry.versions.all() for alias in version.aliases}


# ---- find


@pytest.mark.parametrize("ref", [2, "2", " 2 ", "02"])
def test_find_by_number(registry: Registry, ref: int | str) -> None:
    assert registry.versions.find(ref).version == 2


def test_find_by_alias(registry: Registry) -> None:
    registry.versions.set_alias("study-7", 1)
    assert registry.versions.find("study-7").version == 1
    assert registry.versions.find(registry.versions.find("study-7")).aliases == ("study-7",)


def test_all_lists_the_newest_first(registry: Registry) -> None:
    registry.versions.set_alias(PRODUCTION, 1)
    assert [(version.version, version.aliases) for version in registry.versions.all()] == [(2, ()), (1, (PRODUCTION,))]


@pytest.mark.parametrize(
    ("ref", "advice"),
    [
        (PRODUCTION, "promote one, or set the alias 'production' on it in the MLflow user interface"),
        (CANDIDATE, "adapt to a new lab to get a candidate"),
        (PREVIOUS, "there is nothing to roll back to"),
        ("Study", "give one of these numbers or aliases"),
        (3, "give one of these numbers or aliases"),
        (0, "give one of these numbers or aliases"),
        (-1, "give one of these numbers or aliases"),
        ("", "give one of these numbers or aliases"),
    ],
)
def test_error_of_an_unknown_version_lists_the_existing_ones(registry: Registry, ref: int | str, advice: str) -> None:
    registry.versions.set_alias("study", 1)
    with pytest.raises(VersionNotFoundError) as caught:
        registry.versions.find(ref)
    message = f"expected version {str(ref)!r} of microseg-segmenter, there are 2, 1 (study); {advice}"
    assert str(caught.value).startswith(message)


def test_error_of_an_empty_registry_says_to_train(empty: Registry) -> None:
    with pytest.raises(VersionNotFoundError, match="has none yet; train a first model from a labelled lab"):
        empty.versions.find(PRODUCTION)
    with pytest.raises(VersionNotFoundError):
        empty.versions.find(1)


@pytest.mark.filterwarnings("ignore")
def test_legacy_stage_is_a_request(registry: Registry) -> None:
    if not hasattr(mlflow.MlflowClient, "transition_model_version_stage"):
        pytest.skip("this MLflow has no stages any more")
    client_of(registry).transition_model_version_stage(MODEL_NAME, "1", "Production")
    with pytest.raises(VersionNotFoundError):
        registry.versions.find(PRODUCTION)  # requested, not validated
    with pytest.raises(VersionNotFoundError):
        registry.versions.find(CANDIDATE)
    registry.production.promote(2)
    assert registry.versions.find(PRODUCTION).version == 2
    with pytest.raises(VersionNotFoundError):
        registry.versions.find(PREVIOUS)


def test_candidate_is_the_only_one(registry: Registry) -> None:
    registry.versions.set_alias("candidate-lab_b", 1)
    assert registry.versions.find(CANDIDATE).version == registry.versions.find("candidate-lab_b").version == 1
    registry.versions.set_alias("candidate-lab_c", 2)
    with pytest.raises(VersionNotFoundError, match=r"candidate-lab_b \(version 1\), candidate-lab_c \(version 2\)"):
        registry.versions.find(CANDIDATE)
    registry.production.promote(2)
    assert registry.versions.find(CANDIDATE).version == 1


# ---- register


def test_version_has_the_facts_of_its_run(registry: Registry) -> None:
    first, second = registry.versions.find(1), registry.versions.find(2)
    hashes = {name: value for name, value in first.tags.items() if name.startswith("sha256.")}
    assert {name.removeprefix("sha256."): len(value) for name, value in hashes.items()} == {
        CONFIG_FILE: 64,
        WEIGHTS_FILE: 64,
    }
    assert {name: value for name, value in first.tags.items() if name not in hashes} == {
        "method": "source",
        "labs": "lab_a",
        "classes": "background, gland",
        "mpp": "0.5",
        "encoder": "blocks",
        "dataset.lab_a": DIGEST_A,
        "commit": "c0ffee",
        "model_id": first.model_id,
    }
    assert first.datasets == {"lab_a": DIGEST_A}
    assert second.datasets == {"lab_a": DIGEST_A, "lab_b": DIGEST_B}  # not lab_c: it was only evaluated on
    assert {"mpp": "unknown", "commit": "unknown", "why": "b", "labs": "lab_a, lab_b"}.items() <= second.tags.items()
    assert first.description == "First."
    assert first.uri == "models:/microseg-segmenter/1"
    assert timedelta(0) < datetime.now(UTC) - first.created < timedelta(hours=1)
    run = client_of(registry).get_run(second.run_id)
    assert run.info.run_name == "adapt lab_b"
    assert [output.model_id for output in run.outputs.model_outputs] == [second.model_id]


def test_logged_model_links_to_its_version(registry: Registry) -> None:
    first = registry.versions.find(1)
    assert first.model_id is not None
    logged = client_of(registry).get_logged_model(first.model_id)
    assert logged.status == "READY"
    assert logged.name == "source lab_a"
    assert logged.params == {"epochs": "3"}
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": MODEL_NAME, "version": "1"}]
    assert logged.tags["mlflow.note.content"] == "First."


def test_broken_folder_is_not_registered(empty: Registry, tmp_path: Path) -> None:
    with pytest.raises(WeightsError), empty.runs.start("r") as run:
        empty.versions.register(run, tmp_path, example=np.zeros((32, 32, 3), np.uint8), method="m", description="d")
    assert empty.versions.all() == ()
    assert client_of(empty).get_run(run.id).info.status == "FAILED"


def test_network_that_cannot_be_served_is_not_registered(registry: Registry, demo) -> None:
    folder = demo.networks[0]
    with pytest.raises(RegistryError), registry.runs.start("odd") as run:
        registry.versions.register(run, folder, example=np.zeros((32, 16, 3), np.uint8), method="m", description="d")
    assert len(registry.versions.all()) == 2
    experiment_id = client_of(registry).get_run(run.id).info.experiment_id
    states = {model.name: model.status for model in client_of(registry).search_logged_models([experiment_id])}
    assert states == {"source lab_a": "READY", "adapt lab_b": "READY", "odd": "FAILED"}


# ---- download


def test_download_returns_the_registered_files(registry: Registry, demo, tmp_path: Path) -> None:
    source = demo.networks[0]
    folder = registry.versions.download(1, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert (folder / WEIGHTS_FILE).read_bytes() == (source / WEIGHTS_FILE).read_bytes()
    tile = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_network(folder)(tile), load_network(source)(tile))


def test_version_is_downloaded_once(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (registry.versions.download(number, tmp_path / "cache") for number in (1, 2))
    assert first != second
    assert len(list((tmp_path / "cache").iterdir())) == 2  # and nothing half done is left

    def unreachable(**_: object) -> None:
        raise OSError("the storage cannot be reached")

    monkeypatch.setattr("microseg.registry.network_download.download_artifacts", unreachable)
    assert registry.versions.download("1", tmp_path / "cache") == first
    with pytest.raises(RegistryError, match="the storage cannot be reached"):
        registry.versions.download(1, tmp_path / "another cache")


def test_version_of_other_software_is_rejected(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    client.create_model_version(MODEL_NAME, source=(tmp_path / "else").as_uri())
    with pytest.raises(RegistryError, match=r"files of version 3 \(was it registered by microseg\?\)"):
        registry.versions.download(3, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_reference_distribution_is_stored_with_the_run(registry: Registry, demo, tmp_path: Path) -> None:
    size = len(APPEARANCE_FEATURES)
    reference = ReferenceDistribution(
        APPEARANCE_FEATURES, {"lab_a": LabDistribution(9, np.arange(size, dtype=float), np.eye(size), 3.5)}
    )
    stored = []
    for one in (
        reference,
        ReferenceDistribution(("of", "old"), {}),
    ):  # other features than those of this version
        with registry.runs.start("training") as run:
            run.log_reference_distribution(one)
            version = registry.versions.register(
                run, demo.networks[0], example=demo.example, method="source", description="A card."
            )
        stored.append(registry.versions.reference_distribution(version))
    assert stored[1] is None
    assert stored[0] is not None
    assert stored[0].to_dict() == reference.to_dict()
    assert registry.versions.reference_distribution(1) is None  # registered without


# ---- aliases, tags, model card, artifacts, metrics


def test_alias_is_set_and_removed(registry: Registry) -> None:
    registry.versions.set_alias("study", 1)
    registry.versions.set_alias("study", 2)
    assert aliases(registry) == {"study": 2}
    registry.versions.remove_alias("study")
    registry.versions.remove_alias("study")
    assert aliases(registry) == {}


def test_alias_refused_by_mlflow(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="cannot set the alias 'latest'"):
        registry.versions.set_alias("latest", 1)


def test_metrics_are_logged_with_their_dataset(registry: Registry) -> None:
    version = registry.versions.find(1)
    metrics = {"dice/lab_a": 0.8, "boundary_dice/lab_a": float("nan")}
    registry.versions.log_metrics(version, metrics, dataset=("lab_a", DIGEST_A))
    registry.versions.log_metrics(version, {"augmentation_consistency/lab_b": np.float32(0.5)})
    assert version.model_id is not None
    found = client_of(registry).get_logged_model(version.model_id).metrics
    assert [(metric.key, metric.value, metric.dataset_name, metric.dataset_digest) for metric in found] == [
        ("dice/lab_a", 0.8, "lab_a", DIGEST_A),
        ("augmentation_consistency/lab_b", 0.5, None, None),
    ]
    assert client_of(registry).get_run(version.run_id).data.metrics == {
        "dice/lab_a": 0.8,
        "augmentation_consistency/lab_b": 0.5,
    }


def test_tags_and_model_card_are_stored(registry: Registry) -> None:
    registry.versions.set_tags(1, {"gate": "accepted"})
    registry.versions.describe(1, "Now evaluated.\nAnd well.")
    version = registry.versions.find(1)
    assert version.model_id is not None
    assert client_of(registry).get_logged_model(version.model_id).tags["mlflow.note.content"] == "Now evaluated."
    assert version.tags["gate"] == "accepted"
    assert version.description == "Now evaluated.\nAnd well."
    root = client_of(registry).get_run(version.run_id).info.artifact_uri
    assert Path(mlflow.artifacts.download_artifacts(f"{root}/model_card.md")).read_text() == "Now evaluated.\nAnd well."


def test_long_model_card_is_shortened_at_a_line(registry: Registry) -> None:
    card = "\n".join(f"line {number:04d}" for number in range(1000))
    registry.versions.describe(1, card)
    version = registry.versions.find(1)
    assert len(version.description) <= 5000  # what the column of MLflow's table takes on PostgreSQL
    stored, _, note = version.description.partition("\n\n")
    assert card.startswith(stored + "\n")
    assert "the whole card is `model_card.md`" in note
    root = client_of(registry).get_run(version.run_id).info.artifact_uri
    assert Path(mlflow.artifacts.download_artifacts(f"{root}/model_card.md")).read_text() == card


# ---- the files of a version


def download(registry: Registry, tmp_path: Path) -> Path:
    return registry.versions.download(1, tmp_path / "cache")


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_damaged_copy_in_the_cache_is_downloaded_again(registry: Registry, tmp_path: Path, name: str) -> None:
    file = download(registry, tmp_path) / name
    sound = file.read_bytes()
    for damage in (sound[:-1] + b"x", b""):
        file.write_bytes(damage)
        assert (download(registry, tmp_path) / name).read_bytes() == sound
    file.unlink()
    assert (download(registry, tmp_path) / name).read_bytes() == sound
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.parent.name]


def test_files_that_were_exchanged_in_the_artifact_store_are_refused(registry: Registry, tmp_path: Path) -> None:
    mine, other = (registry.versions.download(number, tmp_path / "cache") for number in (1, 2))
    files = {name: (other / name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE)}
    shutil.rmtree(tmp_path / "cache")
    stored = artifact_folder(registry, 1)
    kept = {name: (stored / name).read_bytes() for name in files}
    try:
        for name, content in files.items():
            (stored / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"version 1.*sha-256|version 1.*SHA-256"):
            download(registry, tmp_path)
        assert not mine.exists()
    finally:  # the artifacts are shared by the tests
        for name, content in kept.items():
            (stored / name).write_bytes(content)


def artifact_folder(registry: Registry, version: int) -> Path:
    uri = client_of(registry).get_model_version_download_uri(MODEL_NAME, str(version))
    return Path(unquote(uri.removeprefix("file://"))) / "extra_files"
