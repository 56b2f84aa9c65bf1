"""The history of production: promotions, rollbacks, removals and reverted changes.

python -m flows.health.history --lab lab_b
"""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.console import console, show_table
from flows.cli.options import LabOption, cli_command
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.registry.production import Promotion
from microseg.registry.version import production_of

__all__ = ["command"]

_COLUMNS = ("time (UTC)", "alias", "change", "gate", "by", "reason")


@cli_command(home="read")
def command(
    lab: LabOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, the newest first.")] = False,
) -> None:
    """List all promotions, rollbacks, removals and reverted changes of production.

    Example: microseg history --json
    """
    entries = open_workspace(load_settings()).read_registry().production.history(production_of(lab) if lab else None)
    if as_json:
        typer.echo(json.dumps([asdict(entry) | {"time": entry.time.isoformat()} for entry in entries], indent=2))
    elif not entries:
        console.print("The history is empty: microseg train creates a first version.")
    else:
        show_table("History of production", _COLUMNS, [_row(entry) for entry in entries])


def _row(entry: Promotion) -> tuple[str, ...]:
    state = "" if entry.state == "done" or entry.action == "reverted" else f" ({entry.state})"
    return (
        f"{entry.time:%Y-%m-%d %H:%M}",
        entry.alias,
        f"{entry.action}{state} {entry.previous_version or '–'} → {entry.version or '–'}",
        entry.audit.gate,
        f"{entry.audit.by or 'unknown'} ({entry.audit.via})",
        entry.audit.reason,
    )


if __name__ == "__main__":
    typer.run(command)
