"""Roll back to the previous version.

python -m flows.rollback --reason "glands of lab_b were cut in two"
"""

from typing import Annotated

import typer
from prefect import flow

from flows.cli.console import console
from flows.cli.options import LabOption, RecordOption, SetOption, cli_command, finish
from flows.promote import audit_info
from flows.validate_promotion import one_writer
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.errors import VersionNotFoundError
from microseg.registry.production import Promotion
from microseg.registry.version import production_of

__all__ = ["command", "rollback"]


@flow(name="rollback")
def rollback(
    lab: str | None = None, reason: str = "", by: str | None = None, changes: tuple[str, ...] = ()
) -> Promotion:
    """Promote the previous version.

    Args:
        lab: For the images of this lab only; for all by default.
        reason: Free text for the history.
        by: User for the history; the user of this process by default.
        changes: Parameters that override those of params.yaml, ``section.name=value``.

    Returns:
        The entry of the history.

    Raises:
        VersionNotFoundError: There is no previous version.
    """
    workspace, alias = open_workspace(load_settings(changes)), production_of(lab)
    production = workspace.registry.production
    with one_writer(load_settings(changes)):
        production.roll_back(alias=alias, audit=audit_info(by=by, reason=reason))
    if workspace.production(lab) is None:
        raise VersionNotFoundError(f"No version is in production for {lab} any more: promote one.")
    return next(entry for entry in production.history(alias) if entry.action == "rolled back")


@cli_command()
def command(
    lab: LabOption = None,
    reason: Annotated[str, typer.Option(help="Reason, for the history.")] = "",
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Roll back to the previous version.

    Example: microseg rollback --reason "glands of lab_b were cut in two"
    """
    entry = rollback(lab, reason, None, tuple(changes or ()))
    active = f"version {entry.version}" if entry.version else "the version for all labs"
    console.print(f"Rolled back from version {entry.previous_version} to {active}.")
    finish(entry, record)


if __name__ == "__main__":
    typer.run(command)
