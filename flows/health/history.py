"""What was in production, when, from what, by whom and why.

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
from microseg.registry.history import Promotion
from microseg.registry.version import production_of

__all__ = ["command"]

_COLUMNS = ("when (UTC)", "for", "what", "from → to", "gate", "by", "via", "reason")


@cli_command(home="read")
def command(
    lab: LabOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, the newest first.")] = False,
) -> None:
    """List every promotion, rollback and refusal: when, from which version to which, by whom, what the gate said, why.

    Example: microseg history --json
    """
    entries = open_workspace(load_settings()).registry.history(production_of(lab) if lab else None)
    if as_json:
        typer.echo(json.dumps([asdict(entry) | {"when": entry.when.isoformat()} for entry in entries], indent=2))
    elif not entries:
        console.print("Nothing was ever promoted: microseg train makes a first version.")
    else:
        show_table("Promotions, the newest first", _COLUMNS, [_row(entry) for entry in entries])


def _row(entry: Promotion) -> tuple[str, ...]:
    state = "" if entry.state == "done" or entry.action == "refused" else f" ({entry.state})"
    return (
        f"{entry.when:%Y-%m-%d %H:%M:%S}",
        entry.alias,
        entry.action + state,
        f"{entry.before or '–'} → {entry.version or '–'}",
        entry.cause.gate,
        entry.cause.by or "unknown",
        entry.cause.via,
        entry.cause.reason,
    )


if __name__ == "__main__":
    typer.run(command)
