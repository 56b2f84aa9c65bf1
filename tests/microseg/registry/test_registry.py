"""Promoting, rolling back, and what is learnt of a version later."""

from pathlib import Path

import mlflow
import numpy as np
import pytest

from microseg.datasets.appearance import APPEARANCE_FEATURES
from microseg.errors import RegistryError, VersionNotFoundError
from microseg.models.reference_distribution import LabDistribution, ReferenceDistribution
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, PREVIOUS, PRODUCTION

DIGEST_A = "0123456789abcdef0123456789abcdef.dir"


def client_of(registry: Registry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.version for version in registry.versions() for alias in version.aliases}


def test_what_a_version_knows_is_kept_with_its_run(registry: Registry, demo, tmp_path: Path) -> None:
    size = len(APPEARANCE_FEATURES)
    reference = ReferenceDistribution(
        APPEARANCE_FEATURES, {"lab_a": LabDistribution(9, np.arange(size, dtype=float), np.eye(size), 3.5)}
    )
    kept = []
    for one in (
        reference,
        ReferenceDistribution(("of", "old"), {}),
    ):  # the second is told by figures that nobody takes now
        with registry.run("training") as run:
            run.log_reference_distribution(one)
            version = registry.register(
                run, demo.networks[0], example=demo.example, method="source", description="A card."
            )
        kept.append(registry.reference_distribution(version))
    assert kept[1] is None
    assert kept[0] is not None
    assert kept[0].to_dict() == reference.to_dict()
    assert registry.reference_distribution(1) is None  # registered without


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
    registry.describe(1, "Now judged.\nAnd well.")
    version = registry.resolve(1)
    assert version.model_id is not None
    assert client_of(registry).get_logged_model(version.model_id).tags["mlflow.note.content"] == "Now judged."
    assert version.tags["gate"] == "accepted"
    assert version.description == "Now judged.\nAnd well."
    root = client_of(registry).get_run(version.run_id).info.artifact_uri
    fetch = mlflow.artifacts.download_artifacts
    assert Path(fetch(f"{root}/evaluation/lab_b/report.html")).read_text() == "<p>good</p>"
    assert Path(fetch(f"{root}/model_card.md")).read_text() == "Now judged.\nAnd well."


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
