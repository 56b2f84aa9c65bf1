"""What all commands share: their common options, and how they end."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from flows.cli.console import exit_on_error
from flows.records import write_record

__all__ = ["LabOption", "RecordOption", "SetOption", "cli_command", "finish"]

P = ParamSpec("P")

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.NAME=VALUE", help="Replace a value of params.yaml; may be given several times."
    ),
]
RecordOption = Annotated[
    Path | None, typer.Option("--record", help="Also write the result as JSON to this file, as the pipeline does.")
]
LabOption = Annotated[
    str | None, typer.Option(help="For this lab's images alone, with its alias production-<lab>; for all by default.")
]


def cli_command(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors end in one message and an exit code that is not 0."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        with exit_on_error():
            function(*args, **kwargs)

    return wrapped


def finish(result: object, record: Path | None) -> None:
    """Write the result to the file asked for, where one is."""
    if record is not None:
        write_record(result, record)
