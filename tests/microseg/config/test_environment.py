from pathlib import Path

import pytest

from microseg.config.environment import Environment, Home

NAMES = ("MICROSEG_HOME", "MICROSEG_PARAMS", "MICROSEG_DVC_REMOTE", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = Environment()
    assert environment.home.root == tmp_path / "var"
    assert environment.tracking_uri == f"sqlite:///{tmp_path}/var/mlflow/mlflow.db"
    assert environment.dvc_remote == str(tmp_path / "var" / "dvc-remote")
    assert environment.microseg_params is None
    assert not (tmp_path / "var").exists()


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("/srv/microseg", "/etc/p.yaml", "s3://bucket/dvc", "https://mlflow"), strict=True):
        monkeypatch.setenv(name, value)
    environment = Environment()
    assert environment.home.root == Path("/srv/microseg")
    assert environment.microseg_params == Path("/etc/p.yaml")
    assert environment.dvc_remote == "s3://bucket/dvc"
    assert environment.tracking_uri == "https://mlflow"


def test_an_empty_variable_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files write ``MICROSEG_HOME=`` for what is not set."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.setenv(name, "")
    environment = Environment()
    assert environment.home.root == tmp_path / "var"
    assert environment.microseg_params is None
    assert environment.tracking_uri.endswith("mlflow.db")
    assert environment.dvc_remote.endswith("dvc-remote")


def test_home_is_absolute_and_its_places_lie_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert Home(Path("~/segment")).root == tmp_path / "user" / "segment"
    home = Home(Path("here"))
    places = {name: place for name, place in vars(home).items() if name != "root"}
    assert all(home.root in place.parents for place in places.values())
    assert len(set(places.values())) == len(places)
    assert home.labs == tmp_path / "here" / "data" / "labs"
