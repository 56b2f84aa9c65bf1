"""What several machines have to share is checked through the remote that they share."""

from pathlib import Path

import pytest

from flows.health.machine import Finding, check_dvc_remote, check_sharing
from microseg.config.environment import Home
from microseg.config.settings import load_settings
from microseg.datasets.versions.store import DatasetStore


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environment of a machine that shares its remote, its drop folder, its records and MLflow."""
    Home(tmp_path / "one").create()
    for name, value in {
        "MICROSEG_HOME": tmp_path / "one",
        "MICROSEG_DVC_REMOTE": tmp_path / "share" / "remote",
        "MICROSEG_ONBOARDING__DROP_FOLDER": tmp_path / "share" / "incoming",
        "MICROSEG_ONBOARDING__RECORDS": tmp_path / "share" / "records",
        "MLFLOW_TRACKING_URI": "http://ann:secret@mlflow:5000",
    }.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


def sharing() -> list[Finding]:
    return list(check_sharing(load_settings()))


def test_machines_that_agree_are_counted(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(it.level, it.message) for it in sharing()] == [("ok", "machines and homes with this remote: 1")]
    Home(machine / "two").create()
    monkeypatch.setenv("MICROSEG_HOME", str(machine / "two"))
    assert [(it.level, it.message) for it in sharing()] == [("ok", "machines and homes with this remote: 2")]
    notes = "".join(path.read_text() for path in (machine / "share" / "remote" / "microseg" / "machines").iterdir())
    assert "secret" not in notes


def test_a_damaged_note_of_a_machine_is_left_out(machine: Path) -> None:
    sharing()
    notes = machine / "share" / "remote" / "microseg" / "machines"
    for name, text in {"a": "[" * 20_000, "b": "[1]", "c": ""}.items():
        (notes / f"{name}.json").write_text(text)
    assert [(it.level, it.message) for it in sharing()] == [("ok", "machines and homes with this remote: 1")]


def test_machines_that_disagree_are_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharing()
    Home(machine / "two").create()
    monkeypatch.setenv("MICROSEG_HOME", str(machine / "two"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    [warning, _] = sharing()
    assert warning.level == "warning"
    assert "MLFLOW_TRACKING_URI is http://another:5000 here and http://***@mlflow:5000 on " in warning.message


def test_states_that_are_not_shared_with_their_drop_folder_are_found(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MICROSEG_ONBOARDING__RECORDS")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [it.action for it in sharing() if it.level == "warning"] == [
        "set onboarding.records to a folder on the same share, if several machines serve it",
        "set MLFLOW_TRACKING_URI to a server, if there are other machines",
    ]


def test_files_that_the_remote_lost_are_reported(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    store = DatasetStore(settings.home.data, settings.environment.dvc_remote)
    (store.labs / "north" / "images").mkdir(parents=True)
    (store.labs / "north" / "images" / "a.png").write_bytes(b"a")
    digest = store.commit("north").digest
    places = (machine / "share" / "remote" / "files", store.root / ".dvc" / "cache" / "files")
    for place in places:
        for path in (path for path in place.rglob("*") if path.is_file() and not path.name.endswith(".dir")):
            path.chmod(0o644)
            path.unlink()
        level, message = next((it.level, it.message) for it in check_dvc_remote(settings))
        if place == places[0]:
            assert (level, "lacked 1 files of versions in the history" in message) == ("warning", True)
            for path in (path for path in place.rglob("*") if path.is_file() and not path.name.endswith(".dir")):
                path.chmod(0o644)
                path.unlink()
    assert (level, f"lacks 1 files of version {digest} of north, and so does this machine" in message) == (
        "error",
        True,
    )
