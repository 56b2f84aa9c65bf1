"""Versions: registering, finding, fetching, promoting, rolling back."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from microseg.errors import RegistryError, VersionNotFoundError, WeightsError
from microseg.model import CONFIG_FILE, WEIGHTS_FILE, load_network
from microseg.registry import CANDIDATE, MODEL_NAME, PREVIOUS, PRODUCTION, Registry

DIGEST_A = "0123456789abcdef0123456789abcdef.dir"
DIGEST_B = "fedcba9876543210fedcba9876543210.dir"


def client_of(registry: Registry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.version for version in registry.versions() for alias in version.aliases}


# ---- what a version tells


def test_a_version_tells_where_it_comes_from(registry: Registry) -> None:
    first, second = registry.resolve(1), registry.resolve(2)
    assert first.tags == {
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


def test_the_logged_model_leads_to_its_version(registry: Registry) -> None:
    first = registry.resolve(1)
    assert first.model_id is not None
    logged = client_of(registry).get_logged_model(first.model_id)
    assert logged.status == "READY"
    assert logged.name == "source lab_a"
    assert logged.params == {"epochs": "3"}
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": MODEL_NAME, "version": "1"}]
    assert logged.tags["mlflow.note.content"] == "First."


def test_a_broken_folder_is_not_registered(empty: Registry, tmp_path: Path) -> None:
    with pytest.raises(WeightsError), empty.run("r") as run:
        empty.register(run, tmp_path, example=np.zeros((32, 32, 3), np.uint8), method="m", description="d")
    assert empty.versions() == ()
    assert client_of(empty).get_run(run.id).info.status == "FAILED"


def test_a_version_that_cannot_be_served_is_not_registered(registry: Registry, story) -> None:
    folder = story.networks[0]
    with pytest.raises(RegistryError), registry.run("odd") as run:
        registry.register(run, folder, example=np.zeros((32, 16, 3), np.uint8), method="m", description="d")
    assert len(registry.versions()) == 2
    experiment_id = client_of(registry).get_run(run.id).info.experiment_id
    states = {model.name: model.status for model in client_of(registry).search_logged_models([experiment_id])}
    assert states == {"source lab_a": "READY", "adapt lab_b": "READY", "odd": "FAILED"}


# ---- finding


@pytest.mark.parametrize("ref", [2, "2", " 2 ", "02"])
def test_by_number(registry: Registry, ref: int | str) -> None:
    assert registry.resolve(ref).version == 2


def test_by_alias(registry: Registry) -> None:
    registry.set_alias("study-7", 1)
    assert registry.resolve("study-7").version == 1
    assert registry.resolve(registry.resolve("study-7")).aliases == ("study-7",)


def test_the_newest_comes_first(registry: Registry) -> None:
    registry.set_alias(PRODUCTION, 1)
    assert [(version.version, version.aliases) for version in registry.versions()] == [(2, ()), (1, (PRODUCTION,))]


@pytest.mark.parametrize(
    ("ref", "advice"),
    [
        (PRODUCTION, "promote one, or set the alias 'production' on it in the MLflow user interface"),
        (CANDIDATE, "adapt to a new lab to get a candidate"),
        (PREVIOUS, "there is nothing to go back to"),
        ("Study", "give one of these numbers or aliases"),
        (3, "give one of these numbers or aliases"),
        (0, "give one of these numbers or aliases"),
        (-1, "give one of these numbers or aliases"),
        ("", "give one of these numbers or aliases"),
    ],
)
def test_what_is_missing_is_told_with_what_there_is(registry: Registry, ref: int | str, advice: str) -> None:
    registry.set_alias("study", 1)
    with pytest.raises(VersionNotFoundError) as caught:
        registry.resolve(ref)
    message = f"expected version {str(ref)!r} of microseg-segmenter, there are 2, 1 (study); {advice}"
    assert str(caught.value).startswith(message)


def test_an_empty_registry_says_to_train(empty: Registry) -> None:
    with pytest.raises(VersionNotFoundError, match="has none yet; train a first model from a labelled lab"):
        empty.resolve(PRODUCTION)
    with pytest.raises(VersionNotFoundError):
        empty.resolve(1)


@pytest.mark.filterwarnings("ignore")
def test_a_version_in_the_legacy_stage_is_production_until_the_alias_is_set(registry: Registry) -> None:
    if not hasattr(mlflow.MlflowClient, "transition_model_version_stage"):
        pytest.skip("this MLflow has no stages any more")
    client_of(registry).transition_model_version_stage(MODEL_NAME, "1", "Production")
    assert registry.resolve(PRODUCTION).version == 1
    with pytest.raises(VersionNotFoundError):
        registry.resolve(CANDIDATE)
    registry.promote(2)
    assert registry.resolve(PRODUCTION).version == 2
    assert registry.resolve(PREVIOUS).version == 1


# ---- fetching


def test_what_is_fetched_is_what_was_registered(registry: Registry, story, tmp_path: Path) -> None:
    source = story.networks[0]
    folder = registry.download(1, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert (folder / WEIGHTS_FILE).read_bytes() == (source / WEIGHTS_FILE).read_bytes()
    tile = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_network(folder)(tile), load_network(source)(tile))


def test_a_version_is_fetched_once(registry: Registry, tmp_path: Path) -> None:
    first = registry.download(1, tmp_path / "cache")
    marked = (first / WEIGHTS_FILE).stat().st_mtime_ns
    assert registry.download("1", tmp_path / "cache") == first
    assert (first / WEIGHTS_FILE).stat().st_mtime_ns == marked
    assert registry.download(2, tmp_path / "cache") != first
    assert len(list((tmp_path / "cache").iterdir())) == 2  # and nothing half done is left


def test_a_version_of_another_making(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    client_of(registry).create_model_version(MODEL_NAME, source=(tmp_path / "else").as_uri())
    with pytest.raises(RegistryError, match=r"files of version 3 \(was it registered by microseg\?\)"):
        registry.download(3, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# ---- promoting


def test_promote_and_roll_back(registry: Registry) -> None:
    registry.set_alias(CANDIDATE, 1)
    assert registry.promote(CANDIDATE).aliases == (PRODUCTION,)
    assert aliases(registry) == {PRODUCTION: 1}  # a first version has nothing to go back to
    registry.set_alias(CANDIDATE, 2)
    assert registry.promote(2).version == 2
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert registry.rollback().version == 1
    assert aliases(registry) == {PRODUCTION: 1}
    with pytest.raises(VersionNotFoundError, match="nothing to go back to"):
        registry.rollback()
    assert aliases(registry) == {PRODUCTION: 1}


def test_promoting_twice_keeps_the_way_back(registry: Registry) -> None:
    registry.promote(1)
    registry.promote(2)
    registry.set_alias(CANDIDATE, 2)
    registry.promote(2)
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}


def test_promoting_the_previous_one_swaps_them(registry: Registry) -> None:
    registry.promote(1)
    registry.promote(2)
    registry.promote(PREVIOUS)
    assert aliases(registry) == {PRODUCTION: 1, PREVIOUS: 2}


def test_another_versions_candidacy_is_left(registry: Registry) -> None:
    registry.set_alias(CANDIDATE, 2)
    registry.promote(1)
    assert aliases(registry) == {PRODUCTION: 1, CANDIDATE: 2}


def test_an_alias_moves_and_goes(registry: Registry) -> None:
    registry.set_alias("study", 1)
    registry.set_alias("study", 2)
    assert aliases(registry) == {"study": 2}
    registry.remove_alias("study")
    registry.remove_alias("study")
    assert aliases(registry) == {}


def test_a_name_that_mlflow_refuses(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="cannot set the alias 'latest'"):
        registry.set_alias("latest", 1)


# ---- what is learnt later


def test_metrics_show_on_the_model_with_their_dataset(registry: Registry) -> None:
    version = registry.resolve(1)
    metrics = {"dice/lab_a": 0.8, "hd95/lab_a": float("nan")}
    registry.log_metrics_for(version, metrics, dataset=("lab_a", DIGEST_A))
    registry.log_metrics_for(version, {"agreement/lab_b": np.float32(0.5)})
    assert version.model_id is not None
    found = client_of(registry).get_logged_model(version.model_id).metrics
    assert [(metric.key, metric.value, metric.dataset_name, metric.dataset_digest) for metric in found] == [
        ("dice/lab_a", 0.8, "lab_a", DIGEST_A),
        ("agreement/lab_b", 0.5, None, None),
    ]
    assert client_of(registry).get_run(version.run_id).data.metrics == {"dice/lab_a": 0.8, "agreement/lab_b": 0.5}


def test_files_tags_and_the_card_are_added(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>good</p>")
    registry.attach(1, [tmp_path / "report.html"], "evaluation/lab_b")
    registry.set_tags(1, {"gate": "accepted"})
    registry.describe(1, "Now judged.")
    version = registry.resolve(1)
    assert version.tags["gate"] == "accepted"
    assert version.description == "Now judged."
    root = client_of(registry).get_run(version.run_id).info.artifact_uri
    fetch = mlflow.artifacts.download_artifacts
    assert Path(fetch(f"{root}/evaluation/lab_b/report.html")).read_text() == "<p>good</p>"
    assert Path(fetch(f"{root}/model_card.md")).read_text() == "Now judged."


def test_a_long_card_is_cut_at_a_line_and_kept_whole_beside(registry: Registry) -> None:
    card = "\n".join(f"line {number:04d}" for number in range(1000))
    registry.describe(1, card)
    version = registry.resolve(1)
    assert len(version.description) <= 5000  # what the column of MLflow's table takes on PostgreSQL
    kept, _, note = version.description.partition("\n\n")
    assert card.startswith(kept + "\n")
    assert "the whole card is `model_card.md`" in note
    root = client_of(registry).get_run(version.run_id).info.artifact_uri
    assert Path(mlflow.artifacts.download_artifacts(f"{root}/model_card.md")).read_text() == card
