"""What the pipeline in dvc.yaml needs beside the flows: labs to begin with, and names for the versions between its
stages.

    python -m flows.pipeline labs var/pipeline/labs
    python -m flows.pipeline alias first var/pipeline/train.json
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import cli_command
from flows.demo import make_labs
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.datasets.lab import read_lab_metadata
from microseg.errors import MicrosegError
from microseg.registry.production import AuditInfo
from microseg.registry.version import is_production

__all__ = ["alias", "app", "labs"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Steps of dvc.yaml that are no flows.")


@app.command()
@cli_command(home="create")
def labs(folder: Annotated[Path, typer.Argument(help="Where the labs go.")]) -> None:
    """Make the demo's two labs, as they would be delivered."""
    folder.mkdir(parents=True, exist_ok=True)
    for delivered in make_labs.fn(load_settings()):
        delivered.rename(folder / read_lab_metadata(delivered).lab)


@app.command()
@cli_command
def alias(
    name: Annotated[str, typer.Argument(help="The alias, such as production.")],
    record: Annotated[Path, typer.Argument(help="Record of the flow that made the version.")],
) -> None:
    """Give the version that a flow made an alias, so that the stages after it find it. No gate is asked."""
    registry = open_workspace(load_settings()).registry
    try:
        version = int(json.loads(record.read_text())["version"])
    except (OSError, ValueError, KeyError) as error:
        raise MicrosegError(f"{record}: expected the record of train or adapt, got {error!r}. Run it first.") from error
    if is_production(name):
        registry.production.promote(
            version, alias=name, audit=AuditInfo(via="pipeline", reason="The pipeline begins with it.")
        )
    else:
        registry.versions.set_alias(name, version)


if __name__ == "__main__":
    app()
