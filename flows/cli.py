"""The ``microseg`` command: one subcommand a flow. A subcommand's module is loaded when it is used, since that takes seconds."""

import importlib
import sys

import typer
from click import Command, Context
from typer.core import TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "ingest": "Check a lab's folder and make it a version of the lab's dataset.",
    "train": "Train the first segmenter from labelled labs.",
    "adapt": "Adapt the production segmenter to a new lab, without its labels.",
    "evaluate": "Judge a candidate beside the production model.",
    "promote": "Put a candidate into production if the gate accepts; or roll back.",
    "segment": "Segment images: masks, outlines, overlays, measurements.",
    "story": "The whole of it on two made labs, or on two of your own.",
    "serve": "Register all flows as deployments and run what is scheduled.",
    "servers": "A Prefect server and an MLflow server on this machine.",
}


class _Lazy(TyperGroup):
    """Knows the names and their help; imports a flow's module only when it is run or asked for its help."""

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name not in COMMANDS:
            return None
        if _asks_for_overview():
            return Command(cmd_name, help=COMMANDS[cmd_name])
        function = importlib.import_module(f"flows.{cmd_name}").command
        info = CommandInfo(name=cmd_name, callback=function)
        return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")


def _asks_for_overview() -> bool:
    return not any(argument in COMMANDS for argument in sys.argv[1:])


app = typer.Typer(
    cls=_Lazy,
    no_args_is_help=True,
    add_completion=False,
    help="Keeps one image segmenter working across labs: adapts it to a new lab's images without labels, judges the "
    "candidate, offers it for promotion, and segments with the production model.",
)


@app.callback()
def _root() -> None:
    """Options before the subcommand: none."""


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
