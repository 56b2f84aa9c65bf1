"""Options that several commands share, and what every command does at its start and end."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, ParamSpec

import typer
from pydantic_core import to_json

from flows.cli.console import console, exit_on_error
from microseg.config.environment import Environment
from microseg.files import write_text_file

__all__ = ["CandidateArgument", "LabOption", "RecordOption", "SetOption", "cli_command", "finish"]

P = ParamSpec("P")

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Override a parameter of params.yaml; repeatable."),
]
RecordOption = Annotated[
    Path | None, typer.Option("--record", metavar="FILE", help="Also write the result to this file, as JSON.")
]
CandidateArgument = Annotated[
    str, typer.Argument(help="Version or alias, such as candidate-lab_b; candidate if there is only one.")
]
LabOption = Annotated[
    str | None,
    typer.Option(help="Only for images of this lab (alias production-<lab>); for all labs by default.", metavar="LAB"),
]


def cli_command(
    home: Literal["use", "create", "read"] = "use",
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate a command: errors end in one message and a non-zero exit code, and microseg's home exists.

    Args:
        home: ``use`` ends with an error where there is no home to work in; ``create`` creates it; ``read`` leaves it
            to the command, which writes nothing.
    """

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            with exit_on_error():
                if home != "read":
                    prepare_home(create=home == "create")
                function(*args, **kwargs)

        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        wrapped.__doc__ = "\n\n".join(" ".join(it.split()) for it in paragraphs)  # wrapped to the terminal by Typer
        return wrapped

    return decorate


def prepare_home(*, create: bool) -> None:
    """Check, or create, the home of a command that writes.

    Args:
        create: Create a missing home, even if the model registry would be in it.

    Raises:
        HomeError: The home is missing, or it cannot be written, or is of another format.
    """
    environment = Environment()
    if not create:
        environment.require_home()
    if environment.home.create():
        console.print(f"Created microseg's home at {environment.home.root}", soft_wrap=True, markup=False)


def finish(result: object, record: Path | None) -> None:
    """Write a command's result as JSON to the file of ``--record``, if one was given."""
    if record is not None:
        write_text_file(record, to_json(result, indent=2, inf_nan_mode="null").decode() + "\n")
