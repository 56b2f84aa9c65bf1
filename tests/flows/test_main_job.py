"""The flows in the order in which users run them: the results of each."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, ArtifactFilterType

from flows.export import export
from flows.promote import promote
from flows.rollback import rollback
from flows.segment import segment
from microseg.config.environment import HOME_FILE
from microseg.datasets.versions.store import DatasetStore
from microseg.errors import SettingsError
from microseg.models.files import load_network
from microseg.outputs.record import read_record


def comparison_of(job: Any) -> dict[str, Any]:
    return dict(json.loads(Path(job.evaluated.comparison).read_text()))


def test_ingest_commits_a_dataset_version(done: Any) -> None:
    record = done.ingested["lab_a"]
    assert (record.images, record.labelled, record.rejected, record.quarantine) == (8, 8, (), None)
    store = DatasetStore(done.home / "data", str(done.home / "dvc-remote"))
    assert [entry.digest for entry in store.history("lab_a")] == [record.digest, done.ingested_later.digest]
    assert done.ingested["lab_b"].labelled == 0


def test_train_promotes_the_first_version(done: Any) -> None:
    assert done.trained.version == 1
    assert done.trained.decision.promoted
    assert done.registry.versions.find(1).datasets == {"lab_a": done.ingested["lab_a"].digest}
    assert 0 <= done.trained.dice["lab_a"] <= 1


def test_adapt_uses_the_datasets_of_the_production_version(done: Any) -> None:
    """Not the newer version of lab_a that was ingested later."""
    digests = {lab: ingested.digest for lab, ingested in done.ingested.items()}
    assert done.ingested_later.digest != digests["lab_a"]
    assert (done.adapted.version, done.adapted.datasets) == (2, digests)
    version = done.registry.versions.find(2)
    assert version.datasets == digests
    assert version.tags["base_version"] == "1"


def test_versions_state_their_method_and_labs(done: Any) -> None:
    for number, method in ((1, "supervised"), (2, "dual_adaptive_pyramid")):
        version = done.registry.versions.find(number)
        assert version.tags["method"] == method
        assert "lab_a" in version.description
    assert "lab_b" in done.registry.versions.find(2).description


def test_evaluate_stores_its_comparison(done: Any) -> None:
    record = done.evaluated
    assert (record.decision.version, record.decision.production_version, record.lab) == (2, 1, "lab_b")
    comparison = json.loads(Path(record.comparison).read_text())
    assert set(comparison["candidate"]["source_dice"]) == {"lab_a"}
    assert "augmentation_consistency" in comparison["candidate"]["label_free"]
    assert {"object_f1", "object_dice", "aji", "object_f1_gland"} <= comparison["scores"]["lab_a"].keys()
    assert "| lab_a: object F1 |" in done.registry.versions.find(2).description
    assert record.panels
    assert all(Path(panel).is_file() for panel in record.panels)
    assert "Version 2 " in (page := Path(record.page).read_text(encoding="utf-8"))
    assert page.count("<figure ") == 6  # all images of the lab
    assert len(comparison["uncertainty"]) == 6
    link = done.registry.attachments.link(2, "evaluation/decision.html")
    assert f"**[Decision page]({link})**" in done.registry.versions.find(2).description
    assert done.registry.attachments.paths(2, "evaluation", ".html") == ["evaluation/decision.html"]


def test_out_of_distribution_score_is_relative_to_each_versions_labs(done: Any) -> None:
    for number, labs in ((1, {"lab_a"}), (2, {"lab_a", "lab_b"})):
        known = done.registry.versions.reference_distribution(number)
        assert known is not None
        assert set(known.labs) == labs
    new, old = (comparison_of(done)[side]["label_free"] for side in ("candidate", "production"))
    assert new["ood_score"] < old["ood_score"]
    assert (new["ood_share"], old["ood_share"]) == (0, 1)
    assert "out-of-distribution score" in done.registry.versions.find(2).description
    record = done.segmented
    assert (record.ood.images, record.ood.out_of_distribution, record.ood.exceeds_limits) == (6, 0, False)
    assert record.ood.median_score == pytest.approx(new["ood_score"])
    summary = pd.read_csv(Path(record.out) / "summary.csv")
    assert summary["ood_score"].median() == pytest.approx(record.ood.median_score, rel=1e-4)
    assert done.segmented_again.ood == record.ood  # also of images that were skipped


def test_batch_of_an_unknown_lab_is_out_of_distribution(copied: Any, tmp_path: Path) -> None:
    record = segment(copied.lab_b, model="1", out=tmp_path / "out")
    assert (record.ood.images, record.ood.out_of_distribution, record.ood.exceeds_limits) == (6, 6, True)
    assert record.ood.median_score == pytest.approx(comparison_of(copied)["production"]["label_free"]["ood_score"])
    assert "This batch is out of distribution" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    allowed = segment(
        copied.lab_b,
        model="1",
        out=tmp_path / "out",
        changes=("out_of_distribution.max_share=1", "out_of_distribution.max_median_score=99"),
    )
    assert (allowed.skipped, allowed.ood.out_of_distribution, allowed.ood.exceeds_limits) == (6, 6, False)


def test_segments_without_a_reference_distribution(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microseg.registry.versions.REFERENCE_FILE", "missing.json")
    record = segment(copied.lab_b, out=tmp_path / "out")
    assert (record.done, record.ood.images, record.ood.exceeds_limits) == (6, 0, False)


def test_refused_candidate_stays_candidate(done: Any) -> None:
    assert (done.refused.promoted, done.refused.version, done.refused.production_version) == (False, 2, 1)
    assert any("augmentation consistency is" in message for message in done.refused.reasons)
    assert done.aliases_after_refusal == {"production": 1, "candidate-lab_b": 2}


def test_accepted_candidate_becomes_production(done: Any) -> None:
    assert (done.promoted.promoted, done.promoted.version) == (True, 2)
    assert done.aliases == {"production": 2, "previous": 1}


def test_promoting_the_production_version_changes_nothing(copied: Any) -> None:
    assert promote("production").promoted
    assert copied.aliases == {"production": 2, "previous": 1}


def test_rollback(copied: Any) -> None:
    record = rollback()
    assert (record.version, record.active_version, record.previous_version) == (1, 1, 2)
    assert copied.aliases == {"production": 1}


def test_outputs_are_complete_and_record_their_provenance(done: Any) -> None:
    record, out = done.segmented, Path(done.segmented.out)
    assert (record.version, record.images, record.done, record.failed) == ("2", 6, 6, 0)
    assert out == done.home / "segmentations" / "lab_b"
    assert len(pd.read_csv(out / "summary.csv")) == 6
    assert pd.read_csv(out / "failures.csv").empty
    one = read_record(out / "lab_b_000.json")
    assert one.provenance.model == "microseg-segmenter/2"
    assert one.provenance.run_id == done.adapted.run_id
    assert one.provenance.datasets == done.registry.versions.find(2).datasets
    assert set(one.outputs) == {"labels", "outlines", "overlay", "objects"}
    assert all((out / file).is_file() for file in one.outputs.values())
    assert one.mpp == 1.0  # from the lab's images.csv


def test_second_batch_skips_segmented_images(done: Any) -> None:
    assert (done.segmented_again.done, done.segmented_again.skipped) == (0, 6)


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("comparison", "measurement"),
        ("panel-1", "data:image/"),
        ("decision-page", "decision.html"),
        ("gate", "accepted"),
        ("batch", "skipped"),
        ("overlay-1", "data:image/"),
    ],
)
def test_prefect_shows_artifacts(done: Any, key: str, content: str) -> None:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    assert found, f"no artifact {key}"
    assert any(content in str(it.data) for it in found)


def test_prefect_shows_training_progress(done: Any) -> None:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["progress"])))
    progress = {(it.description, it.data) for it in found}
    assert {("Training on lab_a", 100.0), ("Adapting to lab_b", 100.0)} <= progress


def test_writes_only_known_folders_of_the_home(done: Any) -> None:
    expected = {
        HOME_FILE,
        "prefect",
        "data",
        "dvc-remote",
        "later",
        "mlflow",
        "models",
        "records",
        "runs",
        "segmentations",
    }
    assert {path.name for path in done.home.iterdir()} == expected
    assert not list(done.home.rglob("*.partial"))


def test_export(done: Any, tmp_path: Path) -> None:
    record = export("production", "torchscript", tmp_path, changes=("inference.tile_size=32", "inference.halo=4"))
    assert (record.version, record.format, record.tile) == ("2", "torchscript", 32)
    network = load_network(done.registry.versions.download(2, done.home / "models"))
    tile = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        given = torch.jit.load(record.path)(tile)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(given, network.eval()(tile).softmax(1), atol=1e-4, rtol=0)
    with pytest.raises(SettingsError, match="choose one"):
        export("production", "keras", tmp_path)


def test_batch_has_a_page_and_parquet_tables(done: Any) -> None:
    out = Path(done.segmented.out)
    assert "microseg-segmenter/2" in (out / "index.html").read_text(encoding="utf-8")
    assert len(pd.read_parquet(out / "summary.parquet")) == 6
    assert len(pd.read_parquet(out / "measurements.parquet")) == len(pd.read_csv(out / "measurements.csv"))
