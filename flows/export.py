"""A registered version → a file for other programs.

python -m flows.export production --format bioimageio
"""

from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, task

from flows.cli.console import console
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.models.export.formats import FORMATS, ExportedModel, export_model
from microseg.registry.version import MODEL_NAME, PRODUCTION, ModelVersion

__all__ = ["command", "export"]


@task
def export_version(version: ModelVersion, kind: str, path: Path, settings: Settings) -> ExportedModel:
    """Write the file, and compare its probabilities with those of the network."""
    inference = settings.params.inference
    return export_model(
        open_workspace(settings).network(version),
        path,
        kind=kind,
        tile=inference.tile_size,
        halo=inference.halo,
        name=f"{MODEL_NAME} {version.version}",
        description=version.description,
        version=str(version.version),
    )


@flow(name="export", flow_run_name="export {model} as {kind}")
def export(
    model: str = PRODUCTION, kind: str = "bioimageio", out: Path | None = None, changes: tuple[str, ...] = ()
) -> ExportedModel:
    """Export a registered version.

    Args:
        model: Version or alias.
        kind: One of the formats.
        out: Folder of the file; a folder in microseg's home by default.
        changes: Parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    version = open_workspace(settings).registry.versions.find(model)
    folder = out or settings.home.root / "exports"
    path = folder / f"{MODEL_NAME}-{version.version}{FORMATS.get(kind, '')}"
    return export_version(version, kind, path, settings)


@cli_command()
def command(
    model: Annotated[str, typer.Argument(help="Version or alias.")] = PRODUCTION,
    kind: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "bioimageio",
    out: Annotated[Path | None, typer.Option(help="Folder of the file; one in microseg's home by default.")] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Export a model for other programs: bioimage.io package, ONNX, TorchScript or an exported PyTorch graph.

    The file takes tiles of the size in params.yaml (inference.tile_size), and is kept only if it
    computes the network's probabilities.

    Example: microseg export production --format onnx
    """
    result = export(model, kind, out.absolute() if out else None, tuple(changes or ()))
    console.print(f"Version {result.version} as {result.format}: {result.path}")
    console.print(
        f"Tiles of {result.tile} px; probabilities differ from the network's by at most {result.difference:.1g}"
    )
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
