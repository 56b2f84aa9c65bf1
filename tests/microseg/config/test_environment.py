import stat
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from microseg.config.environment import HOME_FILE, Environment, Home, sqlite_file, sqlite_uri
from microseg.errors import HomeError

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


def test_variables_override_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("/srv/microseg", "/etc/p.yaml", "s3://bucket/dvc", "https://mlflow"), strict=True):
        monkeypatch.setenv(name, value)
    environment = Environment()
    assert environment.home.root == Path("/srv/microseg")
    assert environment.microseg_params == Path("/etc/p.yaml")
    assert environment.dvc_remote == "s3://bucket/dvc"
    assert environment.tracking_uri == "https://mlflow"


def test_empty_variables_count_as_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files write ``MICROSEG_HOME=`` for what is not set."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.setenv(name, "")
    environment = Environment()
    assert environment.home.root == tmp_path / "var"
    assert environment.microseg_params is None
    assert environment.tracking_uri.endswith("mlflow.db")
    assert environment.dvc_remote.endswith("dvc-remote")


def test_home_is_absolute_and_contains_all_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert Home(Path("~/segment")).root == tmp_path / "user" / "segment"
    home = Home(Path("here"))
    folders = {name: folder for name, folder in vars(home).items() if name != "root"}
    assert all(home.root in folder.parents for folder in folders.values())
    assert len(set(folders.values())) == len(folders)
    assert home.labs == tmp_path / "here" / "data" / "labs"


def test_finds_the_nearest_home_above_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sub = tmp_path / "project" / "sub"
    (sub / "var").mkdir(parents=True)  # a folder without the marker is no home
    monkeypatch.chdir(sub)
    assert Environment().home.root == sub / "var"
    assert Home(tmp_path / "project" / "var").create()
    assert Environment().home.root == tmp_path / "project" / "var"
    assert Environment().home_origin == "nearest var/ from the current folder up"
    monkeypatch.setenv("MICROSEG_HOME", "elsewhere")
    assert Environment().home.root == sub / "elsewhere"
    assert Environment().home_origin == "MICROSEG_HOME"


def test_creates_a_home_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "new" / "home")
    assert not home.exists
    assert home.create()
    assert home.exists
    assert not home.create()
    assert home.last_root() == home.root.resolve()


def test_requires_a_home_unless_the_registry_is_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path / "absent"))
    with pytest.raises(HomeError, match=r"No microseg home at .*absent\. Set MICROSEG_HOME"):
        Environment().require_home()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow")
    Environment().require_home()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["data/history", "mlflow/mlflow.db"])
def test_rejects_a_home_of_an_older_version(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    for action in (Home(tmp_path).create, Home(tmp_path).last_root):
        with pytest.raises(HomeError, match=r"of microseg 0\.1.*Set MICROSEG_HOME to a new folder and ingest"):
            action()
    assert not (tmp_path / HOME_FILE).exists()


@pytest.mark.parametrize(
    ("text", "message"), [('{"format": 3, "root": "/x"}', "got format 3"), ("{}", "Restore it from a backup")]
)
def test_rejects_a_home_of_another_format(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / HOME_FILE).write_text(text)
    with pytest.raises(HomeError, match=message):
        Home(tmp_path).create()


def test_rejects_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeError, match="expected a folder that can be written"):
        Home(tmp_path / "file" / "home").create()


def test_generates_secrets_once_and_hides_them_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path))
    first, other = Environment().webhook_secret, Environment().home.secret("other", lambda: "generated")
    assert (Environment().webhook_secret, other) == (first, "generated")
    assert Environment().home.secret("other", lambda: "again") == "generated"
    files = list((tmp_path / "secrets").iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    monkeypatch.setenv("MICROSEG_WEBHOOK_SECRET", "given")
    assert Environment().webhook_secret == "given"
    assert "given" not in repr(Environment())


@pytest.mark.parametrize("name", ["a home", "Größe 100% #1", "a?b %41 #ü"])
def test_address_of_a_database_in_any_folder(tmp_path: Path, name: str) -> None:
    database = tmp_path / name / "mlflow.db"
    database.parent.mkdir()
    assert sqlite_file(sqlite_uri(database)) == database
    with create_engine(sqlite_uri(database)).connect() as connection:
        connection.execute(text("CREATE TABLE x (y INTEGER)"))
    assert database.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sqlite_file("http://host:5000") is None
