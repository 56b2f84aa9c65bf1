"""Opening MLflow and its experiment: quietly, and with errors that say what to do."""

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from microseg.errors import RegistryError
from microseg.registry.relocation import update_moved_home

__all__ = ["Connection", "is_server", "open_client", "open_experiment", "registry_errors"]

_REACH_SECONDS = 10.0

_CHATTY = ("mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store")  # "Creating initial tables…"

_HINTS = {  # the first that fits: words of the message, then codes
    "Invalid Host header": "start the server with --allowed-hosts naming the host in this address",
    "out-of-date database schema": "back the database up, then run `mlflow db upgrade` with its address",
    "database is locked": "other processes write to the same SQLite file: run an MLflow server on it instead",
    "PERMISSION_DENIED": "your account may not do this: ask the server's administrator for the permission",
    "UNAUTHENTICATED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}


class Connection:
    """One MLflow server or database, opened at its first use.

    Args:
        tracking_uri: ``sqlite:////abs/mlflow.db`` or ``http(s)://…``.
        artifact_root: Where the artifacts of new experiments go; see `open_experiment`.
    """

    def __init__(self, tracking_uri: str, artifact_root: str | None = None) -> None:
        self.tracking_uri = tracking_uri
        self._artifact_root = artifact_root
        self._experiments: dict[str, str] = {}

    @cached_property
    def client(self) -> MlflowClient:
        """Its client; see `open_client`."""
        return open_client(self.tracking_uri)

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is made where it is missing; see `open_experiment`."""
        if name not in self._experiments:
            self._experiments[name] = open_experiment(self.client, name, self.tracking_uri, self._artifact_root)
        return self._experiments[name]

    def asking(self, action: str) -> AbstractContextManager[None]:
        """For a ``with`` block: errors of MLflow's say what was asked; see `registry_errors`."""
        return registry_errors(self.tracking_uri, action)


def open_client(tracking_uri: str) -> MlflowClient:
    """A client of one server or database, without touching MLflow's process-wide addresses.

    Args:
        tracking_uri: ``sqlite:////abs/mlflow.db``, another SQLAlchemy address, or ``http(s)://…``. The folder of an
            SQLite file is made where missing; the first opening of a new file makes its tables (seconds).

    Raises:
        RegistryError: The server cannot be reached, or the database cannot be used.
    """
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if (database := _sqlite_file(tracking_uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        update_moved_home(database)
    with registry_errors(tracking_uri, "be opened"):
        if is_server(tracking_uri):
            _reach(tracking_uri)
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        client.search_registered_models(max_results=1)
    return client


def open_experiment(client: MlflowClient, name: str, tracking_uri: str, artifact_root: str | None) -> str:
    """Find or make an experiment.

    Args:
        client: Of ``tracking_uri``.
        name: The experiment's name.
        tracking_uri: The server or database.
        artifact_root: Where the artifacts of a new one go: a folder, or an address such as ``s3://…``. None: beside an
            SQLite file; where the server decides. A folder of this machine means nothing to a server, and is not given
            to one.

    Returns:
        The experiment's id.

    Raises:
        RegistryError: The experiment was deleted, or the registry refuses.
    """
    with registry_errors(tracking_uri, "open its experiment"):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                root = _artifact_root(tracking_uri, artifact_root)
                return client.create_experiment(name, artifact_location=root)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # it does when another process was quicker
                    raise
                found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise RegistryError(
            f"expected an active experiment {name!r}, it was deleted; restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id if found else '…'}`"
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def is_server(tracking_uri: str) -> bool:
    """Whether an address is an MLflow server's, not a database's."""
    return urlsplit(tracking_uri).scheme in ("http", "https")


@contextmanager
def registry_errors(tracking_uri: str, action: str) -> Iterator[None]:
    """Turn whatever MLflow raises into `RegistryError`.

    Args:
        tracking_uri: Named in the message, without its password.
        action: What was asked, to follow "cannot", in the passive: ``"be opened"``.

    Raises:
        RegistryError: MLflow, its database, its server or its storage refused.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = getattr(error, "message", None) or str(error)
        code = getattr(error, "error_code", "")
        hint = next((advice for sign, advice in _HINTS.items() if sign == code or sign in text), None)
        place = re.sub(r"//[^/@]+@", "//***@", tracking_uri)
        raise RegistryError(f"the registry at {place} cannot {action}: {text}{f'; {hint}' if hint else ''}") from error


def _reach(tracking_uri: str) -> None:
    """One short question first: MLflow's own calls retry an absent server for minutes."""
    credentials = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
    options = {"max_retries": 0, "timeout": _REACH_SECONDS, "raise_on_status": False}
    try:
        http_request(credentials, "/health", "GET", **options)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise OSError("no server answers there; start it, or correct the address") from error


def _sqlite_file(tracking_uri: str) -> Path | None:
    prefix, _, file = tracking_uri.partition(":///")
    return Path(file) if prefix.split("+")[0] == "sqlite" and file else None


def _artifact_root(tracking_uri: str, artifact_root: str | None) -> str | None:
    if artifact_root is not None and "://" in artifact_root:
        return artifact_root
    if is_server(tracking_uri):
        return None
    if artifact_root is not None:
        return Path(artifact_root).resolve().as_uri()
    database = _sqlite_file(tracking_uri)
    return None if database is None else (database.resolve().parent / "artifacts").as_uri()
