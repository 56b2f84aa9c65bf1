"""The environment variables, and microseg's home.

Environment:
    MICROSEG_HOME: Folder of everything that microseg writes; by default the nearest ``var`` that is such a home, from
        the current folder up, else a new ``var`` in the current folder.
    MICROSEG_PARAMS: File of parameters; ``params.yaml`` of the current folder, else beside the home, by default.
    MICROSEG_<SECTION>__<NAME>: One parameter, such as ``MICROSEG_TRAIN__STEPS=500``.
    MICROSEG_DVC_REMOTE: Where datasets are pushed, any DVC URL; a folder in the home by default.
    MICROSEG_ALLOWED_URLS: Addresses, separated by spaces, at and below which slides may be read, such as
        ``https://slides.example.org/study/ s3://bucket/``; none by default.
    MLFLOW_TRACKING_URI: MLflow server or database; a SQLite file in the home by default.
    MICROSEG_WEBHOOK_URL: Address at which MLflow's server reaches the webhook receiver; ``http://127.0.0.1:4280`` by
        default.
    MICROSEG_WEBHOOK_HOST: Interface that the webhook receiver listens on; ``127.0.0.1`` by default.
    MICROSEG_WEBHOOK_SECRET: Key with which MLflow's server signs webhooks; one kept in the home by default.
    PREFECT_API_URL: Prefect server, read by Prefect; a temporary one for the duration of a command by default.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from microseg.errors import HomeError, HomeNotFoundError
from microseg.escaping import mask_secrets
from microseg.files import write_text_file
from microseg.parsing import parse_json

__all__ = ["HOME_FILE", "HOME_FORMAT", "Environment", "Home", "find_home", "is_server", "sqlite_file", "sqlite_uri"]

HOME_FILE = "microseg-home.json"
"""Marks a folder as microseg's home; holds the format of the home and the path it was last used at."""

HOME_FORMAT = 2

_FORMAT_1 = ("data/history", "mlflow/mlflow.db")  # microseg 0.1.0 wrote these, and no `HOME_FILE`


def sqlite_uri(database: Path) -> str:
    """SQLAlchemy's address of a SQLite file; in that of a plain path, a ``?`` would end the path."""
    return f"sqlite:///file:{quote(str(database))}?uri=true" if "?" in str(database) else f"sqlite:///{database}"


def sqlite_file(address: str) -> Path | None:
    """The SQLite file of SQLAlchemy's address; None for another database or a server."""
    prefix, _, file = address.partition(":///")
    if prefix.split("+")[0] != "sqlite" or not file:
        return None
    return Path(unquote(file[len("file:") :].partition("?")[0]) if file.startswith("file:") else file)


def find_home() -> Path:
    """Find the home where MICROSEG_HOME is not set: the nearest ``var`` that is one, from the current folder up.

    Returns:
        The first folder ``var`` with a `HOME_FILE`, in the current folder or one above it; else ``var`` in the current
        folder, which need not exist.
    """
    current = Path.cwd()
    homes = (folder / "var" for folder in (current, *current.parents))
    return next((home for home in homes if (home / HOME_FILE).is_file()), current / "var")


def is_server(tracking_uri: str) -> bool:
    """Whether a tracking URI is that of an MLflow server, not of a database."""
    return urlsplit(tracking_uri).scheme in ("http", "https")


class Environment(BaseSettings):
    """The environment variables; see the module. An empty variable counts as not set."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    microseg_home: Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())] = Field(
        default_factory=find_home
    )
    microseg_params: Path | None = None
    microseg_dvc_remote: str | None = None
    microseg_allowed_urls: str = ""
    microseg_webhook_url: str = "http://127.0.0.1:4280"
    microseg_webhook_host: str = "127.0.0.1"
    microseg_webhook_secret: str | None = Field(None, repr=False)
    mlflow_tracking_uri: str | None = None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, mask_secrets(it) if isinstance(it, str) else it) for name, it in super().__repr_args__()]

    @property
    def home(self) -> "Home":
        """The folders in microseg's home."""
        return Home(self.microseg_home)

    @property
    def home_origin(self) -> str:
        """How the home was found, in words."""
        stated = "microseg_home" in self.model_fields_set
        return "MICROSEG_HOME" if stated else "nearest var/ from the current folder up"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address: that of MLFLOW_TRACKING_URI, else a SQLite file in the home."""
        return self.mlflow_tracking_uri or sqlite_uri(self.home.mlflow / "mlflow.db")

    @property
    def dvc_remote(self) -> str:
        """Where datasets are pushed: MICROSEG_DVC_REMOTE, else a folder in the home."""
        return self.microseg_dvc_remote or str(self.home.root / "dvc-remote")

    @property
    def webhook_secret(self) -> str:
        """Key with which MLflow's server signs webhooks: MICROSEG_WEBHOOK_SECRET, else one kept in the home."""
        stated = self.microseg_webhook_secret
        return stated or self.home.secret("webhook-secret", lambda: secrets.token_urlsafe(32))

    def require_home(self) -> None:
        """Check that the home can be used.

        Raises:
            HomeError: It is of another format; or there is none, and the model registry would be in it.
        """
        if self.home.exists or self.mlflow_tracking_uri is None:
            self.home.last_root()


class Home:
    """The folders in microseg's home.

    Args:
        root: The home's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.data = self.root / "data"
        self.labs = self.data / "labs"
        self.quarantine = self.data / "quarantine"
        self.incoming = self.root / "incoming"
        self.runs = self.root / "runs"
        self.models = self.root / "models"
        self.segmentations = self.root / "segmentations"
        self.records = self.root / "records"
        self.secrets = self.root / "secrets"
        self.demo = self.root / "demo"
        self.mlflow = self.root / "mlflow"
        self.prefect = self.root / "prefect" / "server"

    @property
    def exists(self) -> bool:
        """Whether the folder is marked as a home."""
        return (self.root / HOME_FILE).is_file()

    def create(self) -> bool:
        """Create the home, unless it exists.

        Returns:
            Whether it was created now.

        Raises:
            HomeError: The folder cannot be written, or is a home of another format.
        """
        missing = not self.exists
        if not missing or self.is_format_1:
            self.last_root()
        try:
            self.prefect.mkdir(parents=True, exist_ok=True)
            if missing:
                self.record_root()
        except OSError as error:
            raise HomeError(
                f"{self.root}: expected a folder that can be written, got {error}. Correct its permissions, or set "
                "MICROSEG_HOME to another folder."
            ) from error
        return missing

    def record_root(self) -> None:
        """Record in the home that it is used at its present path."""
        text = json.dumps({"format": HOME_FORMAT, "root": str(self.root.resolve())})
        write_text_file(self.root / HOME_FILE, f"{text}\n")

    def last_root(self) -> Path:
        """The path at which the home was last used; another than `root` after it was moved or copied.

        Raises:
            HomeNotFoundError: There is no home.
            HomeError: It is of another format.
        """
        if self.is_format_1:
            raise HomeError(
                f"{self.root}: expected a home of format {HOME_FORMAT}, found one of microseg 0.1, which stores "
                "parameters and records under other names. Set MICROSEG_HOME to a new folder and ingest the labs' "
                "folders and train again there; keep this one for microseg 0.1."
            )
        if not self.exists:
            raise HomeNotFoundError(
                f"No microseg home at {self.root}. Set MICROSEG_HOME, or change to the folder that contains it; "
                "`microseg ingest` and `microseg demo` create one."
            )
        try:
            record: Any = parse_json((self.root / HOME_FILE).read_bytes(), any_names=True)
            found, root = int(record["format"]), Path(record["root"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HomeError(
                f"{self.root / HOME_FILE}: expected format and root as JSON, got {error!r}. Restore it from a backup."
            ) from error
        if found != HOME_FORMAT:
            raise HomeError(
                f"{self.root}: expected a home of format {HOME_FORMAT}, got format {found}. Update microseg, or set "
                "MICROSEG_HOME to another folder."
            )
        return root

    def secret(self, name: str, generate: Callable[[], str]) -> str:
        """A secret that is generated once and kept in the home, readable by its user only.

        Args:
            name: Name of its file.
            generate: Generates a missing secret.
        """
        path = self.secrets / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_file():
            part = path.with_name(f".{name}.{os.getpid()}")
            with suppress(FileExistsError):
                file = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
                os.write(file, generate().encode())
                os.close(file)
            with suppress(FileExistsError):  # another process was quicker: its secret counts
                os.link(part, path)
            part.unlink(missing_ok=True)
        return path.read_text().strip()

    @property
    def is_format_1(self) -> bool:
        """Whether the folder is a home of microseg 0.1."""
        return not self.exists and any((self.root / name).exists() for name in _FORMAT_1)
