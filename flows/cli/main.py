"""The ``microseg`` command. The module of a subcommand is imported when it is used, because that takes seconds."""

import importlib
import sys
from importlib.metadata import version
from typing import Annotated

import typer

__all__ = ["COMMANDS", "SERVICE_COMMANDS", "main"]

COMMANDS = {
    "ingest": ("flows.ingest", "Check a lab's images and masks and add them to its versioned dataset."),
    "train": ("flows.train", "Train a first segmenter on labelled labs."),
    "adapt": ("flows.adapt", "Adapt the production model to a new lab, without labels of that lab."),
    "onboard": ("flows.onboard", "Ingest a new lab, adapt the production model to it and evaluate the candidate."),
    "evaluate": ("flows.evaluate", "Compare a candidate with the production model."),
    "promote": ("flows.promote", "Promote a candidate to production if the gate accepts it."),
    "rollback": ("flows.rollback", "Restore the previous production version."),
    "segment": ("flows.segment", "Segment images and slides: label images, outlines, overlays, measurements."),
    "export": ("flows.export", "Export a model to bioimage.io, ONNX, TorchScript or a PyTorch graph."),
    "demo": ("flows.demo", "Run everything on two synthetic labs, or on two labs of your own."),
    "status": ("flows.health.status", "Show production and candidate versions, labs, and scheduled batches."),
    "history": ("flows.health.history", "List promotions and rollbacks: when, by whom, why."),
    "doctor": ("flows.health.doctor", "Check the installation and the servers, and say how to fix what is wrong."),
    "serve": ("flows.service.serve", "Serve all flows as Prefect deployments and run what is scheduled."),
}
SERVICE_COMMANDS = {
    "local-servers": ("flows.service.local_servers", "Run a Prefect server and an MLflow server on this machine."),
    "webhook-receiver": ("flows.service.webhook_receiver", "Forward promotions in MLflow to Prefect."),
    "drop-folder": ("flows.service.drop_folder", "Watch the drop folder and report complete labs to Prefect."),
    "validate-promotion": ("flows.validate_promotion", "Validate versions that were promoted in MLflow."),
    "reconcile": ("flows.reconcile", "Find promotions and incoming labs that no event reported."),
}


_PANELS = {
    "Labs and models": ("ingest", "train", "adapt", "onboard", "evaluate", "promote", "rollback"),
    "Use a model": ("segment", "export"),
    "Inspect": ("status", "history", "doctor"),
    "Run": ("demo", "serve", "service"),
}


def main() -> None:
    """Run the command line."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        help="Keep one image segmenter working across labs: adapt it to a new lab without labels, evaluate the "
        "candidate, promote it, and segment with the production model.",
        epilog="Begin with [bold]microseg demo[/], or with [bold]microseg ingest[/] and [bold]microseg train[/] on a "
        "labelled lab. [bold]microseg COMMAND --help[/] shows examples.",
    )
    service = typer.Typer(no_args_is_help=True, help="Parts of the service, for operators.")
    arguments = [*sys.argv[1:3], "", ""]
    _add(app, COMMANDS, arguments[0])
    _add(service, SERVICE_COMMANDS, arguments[1] if arguments[0] == "service" else "")
    app.add_typer(service, name="service", rich_help_panel=_panel("service"))
    app.callback()(_options)
    app()


def _add(app: typer.Typer, commands: dict[str, tuple[str, str]], used: str) -> None:
    for name, (module, summary) in commands.items():
        if name == used:
            app.command(name)(importlib.import_module(module).command)
        else:
            app.command(name, help=summary, rich_help_panel=_panel(name))(_not_imported)


def _panel(command: str) -> str | None:
    return next((panel for panel, commands in _PANELS.items() if command in commands), None)


def _not_imported() -> None:
    """Stands for a subcommand in the list of all."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"microseg {version('microseg')}")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of ``microseg`` itself; the help is that of the application."""


if __name__ == "__main__":
    main()
