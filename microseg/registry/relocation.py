"""A home that was moved or copied: MLflow stores artifact locations as absolute addresses, which are updated here."""

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from microseg.config.environment import Home
from microseg.files import write_text_file
from microseg.locks import lock_file
from microseg.parsing import parse_json

__all__ = ["outside_locations", "update_moved_home"]

_LOCATIONS = {  # table → columns with a path or a file:// address
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def update_moved_home(database: Path) -> Path | None:
    """Make the addresses stored in a home name the folder where the home is now.

    Nothing happens unless the database lies in a home that was last used at another path. The database is copied to
    ``mlflow.before-move.db`` beside it before it is changed.

    Args:
        database: ``<home>/mlflow/mlflow.db``.

    Returns:
        The path at which the home was last used; None when nothing had to be done.

    Raises:
        HomeError: The home is of another format.
    """
    home = Home(database.parent.parent)
    if not home.exists or home.mlflow / "mlflow.db" != database.absolute():
        return None
    new = home.root.resolve()
    if home.last_root() == new:
        return None
    with lock_file(home.root / ".relocation.lock"):
        old = home.last_root()
        if old == new:  # another process was quicker
            return None
        if database.is_file():
            _update_database(database, old, new)
        for path in sorted((home.records / "onboarding").glob("*.json")):
            with suppress(ValueError, TypeError, AttributeError):  # a damaged one is set aside when it is read
                record = parse_json(path.read_bytes(), any_names=True)
                if (folder := Path(record.get("folder", ""))).is_relative_to(old):
                    record["folder"] = str(new / folder.relative_to(old))
                    write_text_file(path, json.dumps(record, indent=2) + "\n")
        home.record_root()
    return old


def outside_locations(home: Home) -> list[str]:
    """Artifact locations on this machine that the home's database names and that are not in the home.

    Args:
        home: The home; its database is only read.
    """
    database, found = home.mlflow / "mlflow.db", set[str]()
    if not database.is_file():
        return []
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        for table, column in _columns(connection):
            where = "WHERE name != 'Default'" if table == "experiments" else ""  # MLflow's own experiment is not used
            for (location,) in connection.execute(f"SELECT DISTINCT {column} FROM {table} {where}"):  # nosec B608 (own names)
                address = urlsplit(location or "")
                if address.scheme == "file" and not Path(unquote(address.path)).is_relative_to(home.root.resolve()):
                    found.add(location)
    return sorted(found)


def _update_database(database: Path, old: Path, new: Path) -> None:
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        with closing(sqlite3.connect(database.with_name("mlflow.before-move.db"))) as backup:
            connection.backup(backup)
        with connection:  # one transaction
            for table, column in _columns(connection):
                for before, after in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # nosec B608 (own names)
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )
            connection.execute(  # JSON with the address of the DVC remote
                "UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)",
                (f"{json.dumps(str(old))[:-1]}/", f"{json.dumps(str(new))[:-1]}/"),
            )


def _columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Table and column of each location that this version of MLflow has."""
    return [
        (table, column)
        for table, columns in _LOCATIONS.items()
        for column in columns
        if column in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    ]
