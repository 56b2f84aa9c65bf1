"""The versions and the history in MLflow's SQLite file, read without MLflow, whose import takes seconds.

For commands that only show what is there. Nothing is written, also no missing file. The tables are MLflow's own, so
they are read only where their revision is one whose meaning is known.
"""

import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Never, Protocol

from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.history import HISTORY_MODEL, make_entry, sort_entries
from microseg.registry.production import Production
from microseg.registry.transitions import Entry
from microseg.registry.version import MODEL_NAME, TARGET_TAG, ModelVersion, VersionRef, make_version

__all__ = ["RegistryReader", "SqliteReader", "VersionReader"]

_REVISIONS = ("dc11669786a5",)  # MLflow 3.17; test_sqlite_reader.py compares what is read with MLflow's client
_WORKSPACES = ("MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES")  # they select other rows than those of the default one
_VERSIONS = """
    SELECT version, run_id, creation_time, description, current_stage FROM model_versions
    WHERE workspace = 'default' AND name = ? AND current_stage != 'Deleted_Internal'
"""
_TAGS = "SELECT version, key, value FROM model_version_tags WHERE workspace = 'default' AND name = ?"
_ALIASES = "SELECT alias, version FROM registered_model_aliases WHERE workspace = 'default' AND name = ?"


class VersionReader(Protocol):
    """Finds versions."""

    def adapted_to(self, lab: str) -> Iterator[ModelVersion]:
        """Yield the versions that were adapted to a lab, the newest first."""


class RegistryReader(Protocol):
    """What is shown of a registry, by a `SqliteReader` or a `microseg.registry.registry.Registry`."""

    @property
    def production(self) -> Production:
        """Which version is in production."""

    @property
    def versions(self) -> VersionReader:
        """The versions."""


class SqliteReader:
    """The registry in an SQLite file as it is now, read in one transaction.

    Args:
        database: The file; a missing one is an empty registry.
        labs: Returns the labs that exist besides those in the registry.

    Attributes:
        production: Which version is in production; its methods that change something raise an error.
        versions: The versions.

    Raises:
        sqlite3.Error: It cannot be read, or only MLflow knows what its tables mean: they are of another revision, or
            its workspaces are used.
    """

    def __init__(self, database: Path, labs: Callable[[], Collection[str]] = tuple) -> None:
        store = _Store(database)
        self.versions: VersionReader = store
        self.production = Production(store, store.find, labs)


class _Store:
    def __init__(self, database: Path) -> None:
        self._aliases: dict[str, int] = {}
        self._versions: dict[int, ModelVersion] = {}
        self._staged: tuple[int, ...] = ()
        self._entries: tuple[Entry, ...] = ()
        if not database.is_file():
            return
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("BEGIN")
            _check_known(connection)
            aliases = connection.execute(_ALIASES, (MODEL_NAME,)).fetchall()
            versions, tags = _read(connection, MODEL_NAME)
            entries, entry_tags = _read(connection, HISTORY_MODEL)
        self._aliases = {alias: int(number) for alias, number in aliases}
        for number, run, created, description, _ in versions:
            self._versions[number] = make_version(number, run, created, description, tags[number], self._aliases)
        self._staged = tuple(number for number, *_, stage in versions if stage == "Production")
        self._entries = sort_entries(
            make_entry(number, created, entry_tags[number]) for number, _, created, *_ in entries
        )

    def adapted_to(self, lab: str) -> Iterator[ModelVersion]:
        found = sorted(self._versions.items(), reverse=True)
        return (version for _, version in found if version.tags.get(TARGET_TAG) == lab)

    def find(self, ref: VersionRef) -> ModelVersion:
        if isinstance(ref, int) and ref in self._versions:
            return self._versions[ref]
        raise VersionNotFoundError(f"expected a version {ref} in the registry, found none")

    # ---- what `ProductionStore` reads

    def read(self) -> tuple[Entry, ...]:
        return self._entries

    def aliases(self) -> dict[str, int]:
        return self._aliases

    def staged(self) -> tuple[int, ...]:
        return self._staged

    def labs(self) -> Collection[str]:
        return {lab for version in self._versions.values() for lab in version.datasets}

    def author(self, _version: int) -> str | None:
        return None

    def _refuse(self, *_: object) -> Never:
        raise RegistryError("expected to read the registry only, got a change of it")

    append = mark_applied = begin_move = end_move = move_alias = show = _refuse


def _check_known(connection: sqlite3.Connection) -> None:
    revisions = [revision for (revision,) in connection.execute("SELECT version_num FROM alembic_version")]
    if len(revisions) != 1 or revisions[0] not in _REVISIONS:
        known = ", ".join(_REVISIONS)
        raise sqlite3.DatabaseError(f"expected tables of the revision {known}, got {revisions}: MLflow reads them")
    if used := [name for name in _WORKSPACES if os.environ.get(name)]:
        raise sqlite3.NotSupportedError(f"expected no workspaces, but {used[0]} is set: MLflow reads the tables")


def _read(connection: sqlite3.Connection, model: str) -> tuple[list[tuple[Any, ...]], dict[int, dict[str, str]]]:
    """The rows of the versions of a registered model, and the tags of each."""
    tags: dict[int, dict[str, str]] = defaultdict(dict)
    for number, key, value in connection.execute(_TAGS, (model,)):
        tags[number][key] = value
    return connection.execute(_VERSIONS, (model,)).fetchall(), tags
