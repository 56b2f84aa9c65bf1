from pathlib import Path

import mlflow

from microseg.registry.registry import Registry
from tests.microseg.registry.conftest import client_of


def test_files_are_artifacts_of_the_run(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>good</p>")
    (tmp_path / "report.json").write_text("{}")
    registry.attachments.add(1, sorted(tmp_path.glob("report.*")), "evaluation/lab_b")
    root = client_of(registry).get_run(registry.versions.find(1).run_id).info.artifact_uri
    file = mlflow.artifacts.download_artifacts(f"{root}/evaluation/lab_b/report.html")
    assert Path(file).read_text() == "<p>good</p>"
    assert registry.attachments.paths(1, "evaluation/lab_b", ".html") == ["evaluation/lab_b/report.html"]


def test_attached_file_is_read_on_another_machine_and_linked(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "pictures.json").write_text("[]")
    attachments, copy = registry.attachments, tmp_path / "pictures of another machine.json"
    attachments.add(1, [tmp_path / "pictures.json"], "evaluation/0a1b")
    assert attachments.download(1, "evaluation/0a1b/pictures.json", copy)
    assert copy.read_text() == "[]"
    copy.unlink()
    assert not attachments.download(1, "evaluation/0a1b/other.json", copy)
    assert not attachments.download(1, "evaluation/ffff/pictures.json", copy)
    assert not copy.exists()
    run = registry.versions.find(1).run_id
    experiment = client_of(registry).get_run(run).info.experiment_id
    link = f"#/experiments/{experiment}/runs/{run}/artifacts/evaluation/a%20b.html"
    assert attachments.link(1, "evaluation/a b.html") == link
    assert attachments.page(1, "evaluation/a b.html") is None  # there is no server
