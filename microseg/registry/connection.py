"""The connection to MLflow, with errors that say what to do."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from microseg.config.environment import is_server, sqlite_file
from microseg.errors import RegistryError, RegistryUnavailableError
from microseg.escaping import mask_secrets
from microseg.registry.relocation import update_moved_home

__all__ = ["Connection", "all_pages", "is_server", "registry_errors", "server_version"]

T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0  # seconds

_VERBOSE_LOGGERS = ("mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store")

_HINTS = {  # an error code or a part of the message: the first match is shown
    "Invalid Host header": "start the server with --allowed-hosts naming the host in this address",
    "out-of-date database schema": "back the database up, then run `mlflow db upgrade` with its address",
    "database is locked": "other processes write to the same SQLite file: run an MLflow server on it instead",
    "PERMISSION_DENIED": "your account lacks the permission: ask the server's administrator for it",
    "No module named": "install the package that is named there; the extra microseg[server] has that of PostgreSQL",
    "UNAUTHENTICATED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
_LASTING_HINTS = tuple(advice for pattern, advice in _HINTS.items() if pattern != "database is locked")

_UNAVAILABLE = (  # error codes of MLflow; the first is that of a server that does not answer
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "IO_ERROR",
    "SERVICE_UNDER_MAINTENANCE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "REQUEST_LIMIT_EXCEEDED",
    "COULD_NOT_ACQUIRE_LOCK",
    "ABORTED",
)


class Connection:
    """One MLflow server or database; it is opened at its first use.

    MLflow's process-wide tracking and registry URIs are neither read nor changed.

    Args:
        tracking_uri: ``sqlite:////abs/mlflow.db``, another SQLAlchemy URI, or ``http(s)://…``.
        artifact_root: Where new experiments store their artifacts: a folder, or a URI such as ``s3://…``. None: the
            folder ``artifacts`` beside an SQLite file. A server chooses the location unless a URI is given.
    """

    def __init__(self, tracking_uri: str, artifact_root: str | None = None) -> None:
        self.tracking_uri = tracking_uri
        self._artifact_root = artifact_root
        self._experiments: dict[str, str] = {}

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client. The folder and the tables of a new SQLite file are created (seconds).

        Raises:
            RegistryError: The server cannot be reached, or the database cannot be used.
        """
        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        if (database := sqlite_file(self.tracking_uri)) is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            update_moved_home(database)
        with registry_errors(self.tracking_uri, "be opened"):
            if is_server(self.tracking_uri):
                _check_reachable(self.tracking_uri)
            client = MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)
            client.search_registered_models(max_results=1)
        return client

    @contextmanager
    def action(self, description: str) -> Iterator[MlflowClient]:
        """Use the client in a ``with`` block; MLflow's errors become `RegistryError`.

        Args:
            description: What is done, to follow "cannot": ``"set tags"``.
        """
        client = self.client
        with registry_errors(self.tracking_uri, description):
            yield client

    def check_reachable(self) -> None:
        """Check within seconds that a server answers; nothing is checked of a database.

        Raises:
            RegistryUnavailableError: It does not.
        """
        if is_server(self.tracking_uri):
            with registry_errors(self.tracking_uri, "be reached"):
                _check_reachable(self.tracking_uri)

    def experiment(self, name: str) -> str:
        """Return the ID of an experiment, which is created if it does not exist.

        Raises:
            RegistryError: The experiment was deleted, or MLflow refuses.
        """
        if name not in self._experiments:
            self._experiments[name] = self._open_experiment(name)
        return self._experiments[name]

    def _open_experiment(self, name: str) -> str:
        with self.action("open its experiment") as client:
            found = client.get_experiment_by_name(name)
            if found is None:
                try:
                    return client.create_experiment(name, artifact_location=self._artifact_location())
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process meanwhile
                        raise
                    found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise RegistryError(
                f"expected an active experiment {name!r}, it was deleted; restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id if found else '…'}`"
            )
        experiment_id: str = found.experiment_id
        return experiment_id

    def _artifact_location(self) -> str | None:
        root, database = self._artifact_root, sqlite_file(self.tracking_uri)
        if root is not None and "://" in root:
            return root
        if is_server(self.tracking_uri):  # a local folder does not exist on the server
            return None
        if root is not None:
            return Path(root).resolve().as_uri()
        return None if database is None else (database.resolve().parent / "artifacts").as_uri()


def all_pages(search: Callable[[str | None], PagedList[T]]) -> list[T]:
    """Return the results of all pages of a search.

    Args:
        search: Returns the page with a token, at first None.
    """
    page = search(None)
    results = list(page)
    while page.token:
        page = search(page.token)
        results += page
    return results


@contextmanager
def registry_errors(tracking_uri: str, action: str) -> Iterator[None]:
    """Convert the errors of MLflow, its database and its storage to `RegistryError`.

    Args:
        tracking_uri: Shown in the message, without its password.
        action: What is done, to follow "cannot": ``"be opened"``.

    Raises:
        RegistryUnavailableError: MLflow, its database or its storage cannot be reached, or is busy.
        RegistryError: MLflow, its database, its server or its storage refused.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        text = getattr(error, "message", None) or str(error)
        code = getattr(error, "error_code", "")
        hint = next((advice for pattern, advice in _HINTS.items() if pattern == code or pattern in text), None)
        uri = mask_secrets(tracking_uri)
        away = isinstance(error, OperationalError | OSError) or code in _UNAVAILABLE
        kind = RegistryUnavailableError if away and hint not in _LASTING_HINTS else RegistryError
        raise kind(f"the registry at {uri} cannot {action}: {text}{f'; {hint}' if hint else ''}") from error


def _check_reachable(tracking_uri: str) -> None:
    """Request ``/health`` once: MLflow's own calls retry an absent server for minutes."""
    credentials = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
    options = {"max_retries": 0, "timeout": _CONNECT_TIMEOUT, "raise_on_status": False}
    try:
        http_request(credentials, "/health", "GET", **options)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise OSError("no server answers there; start it, or correct the address") from error


def server_version(tracking_uri: str) -> str:
    """Version of an MLflow server, requested with the account of the environment; empty if the server does not tell it.

    Args:
        tracking_uri: ``http(s)://…``.
    """
    credentials = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
    options = {"max_retries": 0, "timeout": _CONNECT_TIMEOUT, "raise_on_status": False}
    with registry_errors(tracking_uri, "state its version"):
        response = http_request(credentials, "/version", "GET", **options)  # type: ignore[no-untyped-call]
    text = str(response.text).strip()
    return text if response.status_code == 200 and re.fullmatch(r"\d+(\.\w+)+", text) else ""
