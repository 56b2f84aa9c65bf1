"""Steps of the pipeline in dvc.yaml that are not flows: generate labs, and set the aliases that its stages use.

python -m flows.pipeline labs var/pipeline/labs
python -m flows.pipeline alias first var/pipeline/train.json
"""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import cli_command
from flows.demo import make_labs
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.datasets.lab import read_lab_metadata
from microseg.errors import MicrosegError
from microseg.parsing import parse_json
from microseg.registry.production import AuditInfo
from microseg.registry.version import is_production

__all__ = ["alias", "app", "labs"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Steps of dvc.yaml that are not flows.")


@app.command()
@cli_command(home="create")
def labs(folder: Annotated[Path, typer.Argument(help="Folder that the labs are written to.")]) -> None:
    """Generate the two labs of the demo, as incoming folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for lab in make_labs.fn(load_settings()):
        lab.rename(folder / read_lab_metadata(lab).lab)


@app.command()
@cli_command()
def alias(
    name: Annotated[str, typer.Argument(help="Alias, such as production.")],
    record: Annotated[Path, typer.Argument(help="File that the flow wrote with --record.")],
) -> None:
    """Set an alias on the version that a flow registered, for the stages after it. The gate is not applied."""
    registry = open_workspace(load_settings()).registry
    try:
        version = int(parse_json(record.read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MicrosegError(
            f"{record}: expected a file written with --record, got {error!r}. Run the stage before."
        ) from error
    if is_production(name):
        registry.production.promote(
            version, alias=name, audit=AuditInfo(via="pipeline", reason="First version of the pipeline.")
        )
    else:
        registry.versions.set_alias(name, version)


if __name__ == "__main__":
    app()
