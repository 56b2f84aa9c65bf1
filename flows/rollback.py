"""Production → the version before.

python -m flows.rollback --reason "glands of lab_b were cut in two"
"""

from typing import Annotated

import typer
from prefect import flow

from flows.audit import cause
from flows.cli.console import console
from flows.cli.options import LabOption, RecordOption, SetOption, cli_command, finish
from flows.records import PromoteRecord
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.errors import VersionNotFoundError
from microseg.registry.version import production_of

__all__ = ["command", "rollback"]


@flow(name="rollback")
def rollback(
    lab: str | None = None, reason: str = "", by: str | None = None, changes: tuple[str, ...] = ()
) -> PromoteRecord:
    """Put the previous version back into production.

    Args:
        lab: for this lab's images alone; for all by default.
        reason: why, for the history.
        by: who asks, for the history; the user of this process by default.
        changes: parameters that replace those of params.yaml, ``section.name=value``.

    Raises:
        VersionNotFoundError: there is nothing to go back to.
    """
    workspace = open_workspace(load_settings(changes))
    left = workspace.production(lab)
    workspace.registry.rollback(alias=production_of(lab), cause=cause(by=by, reason=reason))
    now = workspace.production(lab)
    if now is None:
        raise VersionNotFoundError(f"Nothing is in production any more for {lab}: promote a version.")
    said = f"Rolled back from version {left.version if left else '–'} to version {now.version}."
    return PromoteRecord(now.version, True, now.version, [said])


@cli_command
def command(
    lab: LabOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Put the previous version back into production.

    Example: microseg rollback --reason "glands of lab_b were cut in two"
    """
    result = rollback(lab, reason, None, tuple(changes or ()))
    console.print(*result.reasons)
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
