"""Time of the commands that people wait for, with a registry of many versions: ``--help``, ``status``, ``history``.

Each is run as a process in a new home. The versions have no files: none of these commands reads any.
"""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.results import argument_parser, spread
from microseg.config.environment import Home
from microseg.registry.production import AuditInfo
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME, TARGET_TAG

__all__ = ["main"]

_COMMANDS = (("--help",), ("status",), ("history",))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(
        "benchmarks.commands",
        "Measures commands with a registry of many versions.",
        "Example: python -m benchmarks.commands --versions 1000 --rounds 5",
    )
    parser.add_argument("--versions", type=int, default=1000, help="versions in the registry (default: 1000)")
    parser.add_argument("--promotions", type=int, default=50, help="of them, in the history (default: 50)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each command (default: 3)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name) / "home")
        home.create()
        prepare(home, chosen.versions, chosen.promotions)
        print(f"{chosen.versions} versions, {chosen.promotions} promotions, {chosen.rounds} runs of each")
        print("\n| command | processor, s | time, s |\n| --- | --- | --- |")
        for command in _COMMANDS:
            measured = [measure(home, command) for _ in range(chosen.rounds)]
            processor, seconds = zip(*measured, strict=True)
            print(f"| microseg {' '.join(command)} | {spread(processor, 2)} | {spread(seconds, 2)} |")


def prepare(home: Home, versions: int, promotions: int) -> None:
    """Register versions without files, and promote the first ones; the others are copied in the database.

    MLflow needs longer for each version and promotion the more versions there are: minutes for a thousand.
    """
    file = home.mlflow / "mlflow.db"
    registry = Registry(f"sqlite:///{file}")
    assert registry.versions.all() == ()  # creates the tables
    client = registry._connection.client
    client.create_registered_model(MODEL_NAME)
    for number in range(1, promotions + 1):
        tags = {TARGET_TAG: f"lab_{number % 10}", f"dataset.lab_{number % 10}": f"{number:032x}.dir"}
        client.create_model_version(MODEL_NAME, source="file:///none", tags=tags, await_creation_for=0)
        registry.production.promote(number, audit=AuditInfo("benchmark", reason="to fill the history"))
    with closing(sqlite3.connect(file)) as connection, connection:
        for table in ("model_versions", "model_version_tags"):
            query = f"SELECT * FROM {table} WHERE name = ? AND version = ?"
            found = connection.execute(query, (MODEL_NAME, promotions))
            version = [column for column, *_ in found.description].index("version")
            rows = found.fetchall()
            marks = ", ".join("?" * len(found.description))
            for number in range(promotions + 1, versions + 1):
                connection.executemany(
                    f"INSERT INTO {table} VALUES ({marks})",
                    [(*row[:version], number, *row[version + 1 :]) for row in rows],
                )


def measure(home: Home, command: Sequence[str]) -> tuple[float, float]:
    """Processor seconds and seconds of a command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    before = os.times()
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *command],
        env=environment | {"MICROSEG_HOME": str(home.root)},
        cwd=home.root,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return processor, time.perf_counter() - start


if __name__ == "__main__":
    main()
