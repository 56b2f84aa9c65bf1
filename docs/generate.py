"""Writes the parts of the documentation that come from the code; a hook of MkDocs (see `mkdocs.yml`).

A line ``<!-- generated: NAME -->`` in a page is replaced by the text of the function of that name in `GENERATED`.
"""

import ast
import html
import importlib
import inspect
import re
import textwrap
import tomllib
import typing
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union

import typer
import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page; MkDocs calls this."""
    return MARKER.sub(lambda match: GENERATED[match[1]](), markdown)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def prose(docstring: str | None) -> str:
    """Text of a docstring, with code marked as in Markdown; files and settings have ``null`` for Python's ``None``."""
    return re.sub(r"\bNone\b", "null", inspect.cleandoc(docstring or "").replace("``", "`"))


# ---- command line


def commands() -> dict[str, Any]:
    """Every command by its name, such as ``service reconcile``."""
    from flows.cli.main import COMMANDS, SERVICE_COMMANDS

    found = {}
    for prefix, group in (("", COMMANDS), ("service ", SERVICE_COMMANDS)):
        for name, (module, _) in group.items():
            app = typer.Typer(add_completion=False)
            app.command(name)(importlib.import_module(module).command)
            found[prefix + name] = typer.main.get_command(app)
    return found


def cli() -> str:
    """Every command with its arguments and options."""
    return "\n".join(_command(name, command) for name, command in commands().items())


def _command(name: str, command: Any) -> str:
    usage, rows = ["microseg", name], []
    parameters = [it for it in command.params if it.name != "help" and not getattr(it, "hidden", False)]
    for parameter in sorted(parameters, key=lambda it: it.param_type_name != "argument"):
        metavar = parameter.metavar or parameter.name.upper()
        many = "..." if parameter.nargs == -1 or parameter.multiple else ""
        if parameter.param_type_name == "argument":
            label = metavar + many
            usage.append(label if parameter.required else f"[{label}]")
        else:
            label = " ".join((*parameter.opts, *parameter.secondary_opts))
            label += "" if parameter.is_flag else f" {metavar}"
        default = parameter.default
        shown = default is not None and default is not False and not callable(default) and default not in ((), [])
        rows.append((f"`{label}`", str(parameter.help or ""), f"`{default}`" if shown else ""))
    if any(it.param_type_name == "option" for it in parameters):
        usage.append("[OPTIONS]")
    text = re.sub(
        r"Example: (.+(?:\n.+)*)", lambda found: f"Example: `{' '.join(found[1].split())}`", prose(command.help)
    )
    parts = [f"## {name}", text, f"```text\n{' '.join(usage)}\n```"]
    if rows:
        parts.append(table(("argument or option", "meaning", "default"), rows))
    return "\n\n".join(parts) + "\n"


# ---- parameters


def parameters() -> str:
    """All parameters with type, range, default and meaning."""
    from microseg.config.settings import Params

    parts = []
    own = {name: field for name, field in Params.model_fields.items() if not _is_model(field.annotation)}
    parts.append("## General\n\n" + _fields(own, ""))
    for name, field in Params.model_fields.items():
        if _is_model(field.annotation):
            parts.append(
                f"## {name}\n\n{prose(field.annotation.__doc__)}\n\n" + _fields(_documented(field.annotation), name)
            )
    return "\n".join(parts)


def _is_model(annotation: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _documented(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields of a model; the meaning of one that only changes a default is that of the base class."""
    fields = {}
    for name, field in model.model_fields.items():
        bases = (base.model_fields[name] for base in model.__mro__ if name in getattr(base, "model_fields", {}))
        meaning = field.description or next((base.description for base in bases if base.description), None)
        fields[name] = FieldInfo.merge_field_infos(field, description=meaning)
    return fields


def _fields(fields: dict[str, FieldInfo], section: str) -> str:
    rows = []
    for name, field in fields.items():
        full = f"{section}.{name}" if section else name
        rows.append((f"`{full}`", field_type(field), _default(field), prose(field.description)))
    return table(("parameter", "values", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    default = yaml.safe_dump(_plain(field.get_default(call_default_factory=True)), default_flow_style=True)
    return f"`{default.splitlines()[0]}`"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def field_type(field: FieldInfo) -> str:
    """Type and range of a field, in words."""
    return _values(field.annotation, field.metadata)


_WORDS: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    SecretStr: "text",
    bool: "true or false",
    Path: "path",
    NoneType: "null",
}


def _values(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _values(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        text = " or ".join(_values(argument) for argument in arguments)
    elif origin is Literal:
        text = ", ".join(f"`{argument}`" for argument in arguments)
    elif origin is tuple:
        distinct = [argument for argument in arguments if argument is not Ellipsis]
        inner = _values(distinct[0])
        text = f"list of: {inner}" if Ellipsis in arguments else f"{len(distinct)} values, each: {inner}"
    elif origin is dict:
        text = f"mapping of {_values(arguments[0])} to {_values(arguments[1])}"
    elif origin is list:
        text = f"list of: {_values(arguments[0])}"
    else:
        text = _WORDS.get(annotation) or getattr(annotation, "__name__", str(annotation))
    limits = [limit for item in metadata for limit in _limits(item)]
    return ", ".join([text, *dict.fromkeys(limits)])


def _limits(item: Any) -> Iterator[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for part in (item, *getattr(item, "metadata", ())):  # a FieldInfo holds further ones
        for name, sign in signs.items():
            if (limit := getattr(part, name, None)) is not None:
                yield f"{sign} {limit:g}"
        if (least := getattr(part, "min_length", None) or 0) > 1:
            yield f"at least {least} long"


def environment() -> str:
    """The environment variables."""
    import microseg.config.environment as module

    text = prose(module.__doc__).partition("Environment:")[2]
    entries = re.findall(r"^    (\S+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    return table(("variable", "meaning"), [(f"`{name}`", meaning) for name, meaning in entries])


# ---- files


def lab_file() -> str:
    """The keys of lab.yaml."""
    from microseg.datasets.lab import LabMetadata

    meanings = attributes(LabMetadata)
    rows = [
        (f"`{name}`", field_type(field), "required" if field.is_required() else _default(field), meanings[name])
        for name, field in LabMetadata.model_fields.items()
    ]
    return table(("key", "values", "default", "meaning"), rows)


def attributes(kind: type) -> dict[str, str]:
    """Meaning of each attribute of a class, from the section ``Attributes`` of its docstring and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = prose(base.__dict__.get("__doc__")).partition("Attributes:")[2]
        entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
        found |= {name: " ".join(meaning.split()) for name, meaning in entries}
    return found


def object_columns() -> str:
    """The columns of the table of objects."""
    from microseg.outputs.columns import column
    from microseg.outputs.measurements import OBJECT_COLUMNS

    return table(("column", "unit", "meaning"), [(f"`{name}`", *column(name)) for name in OBJECT_COLUMNS])


def summary_columns() -> str:
    """The columns of the table of images."""
    from microseg.outputs.columns import column

    return table(("column", "unit", "meaning"), [(f"`{name}`", *column(name)) for name in summary_names()])


def summary_names() -> list[str]:
    """Names of the columns of a written table of images, with one class named ``<class>``."""
    import tempfile

    import numpy as np
    import pandas as pd

    from microseg.outputs.batch_summary import ImageResult, ImageTask, finish_batch
    from microseg.outputs.record import Provenance, read_record
    from microseg.outputs.segmentation import Segmentation

    with tempfile.TemporaryDirectory() as folder:
        segmentation = Segmentation(
            mask=np.zeros((4, 4), np.uint8),
            probabilities=np.full((2, 4, 4), 0.5, np.float32),
            classes=("background", "<class>"),
            mpp=0.5,
            provenance=Provenance(model="microseg-segmenter/1"),
            source="image.png",
            seconds=1.0,
            ood_score=0.5,
        )
        segmentation.save(folder, outputs=("labels",))
        result = ImageResult(ImageTask(Path("image.png"), "image"), read_record(Path(folder) / "image.json"))
        return list(pd.read_csv(finish_batch([result], Path(folder), outputs=("labels",), seconds=1.0).summary).columns)


def record() -> str:
    """The keys of the record of a segmentation."""
    from microseg.outputs.record import Provenance, Record

    parts = []
    for model, title in ((Record, "Keys"), (Provenance, "Keys of `provenance`")):
        meanings = attributes(model)
        rows = [(f"`{name}`", field_type(field), meanings[name]) for name, field in model.model_fields.items()]
        parts.append(f"### {title}\n\n" + table(("key", "values", "meaning"), rows))
    return "\n".join(parts)


def plugins() -> str:
    """The names that microseg itself registers under each entry-point group."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    rows = [(f"`{group}`", ", ".join(f"`{name}`" for name in sorted(names))) for group, names in groups.items()]
    return table(("entry-point group", "built in"), rows)


# ---- service


def constants(path: Path) -> dict[str, tuple[str, str]]:
    """Value and docstring of each text constant of a module."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = {}
    for statement, following in pairwise(body):
        match statement, following:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value))),
                ast.Expr(value=ast.Constant(value=str(meaning))),
            ):
                found[name] = (value, prose(meaning))
    return found


def events() -> str:
    """The events that microseg emits to Prefect."""
    found = constants(ROOT / "flows" / "service" / "events.py").values()
    return table(
        ("event", "meaning"), [(f"`{name}`", meaning) for name, meaning in found if name.startswith("microseg.")]
    )


def deployments() -> str:
    """The deployments of prefect.yaml."""
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    rows = []
    for entry in entries:
        starts = [f"event `{name}`" for trigger in entry.get("triggers", ()) for name in trigger["expect"]]
        for schedule in entry.get("schedules", ()):
            starts.append(f"cron `{schedule['cron']}`" if "cron" in schedule else f"every {schedule['interval']} s")
        rows.append((f"`{entry['name']}`", entry["description"], ", ".join(starts), f"`{entry['work_pool']['name']}`"))
    return table(("deployment", "does", "started by, beside requests", "work pool"), rows)


def errors() -> str:
    """The tree of errors."""
    from microseg.errors import MicrosegError

    lines = []

    def add(kind: type[BaseException], depth: int) -> None:
        others = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins" and base is not Exception]
        also = f" (also a `{others[0]}`)" if others else ""
        lines.append(f"{'    ' * depth}- `{kind.__name__}`{also}: {prose(kind.__doc__).partition(chr(10) * 2)[0]}")
        for child in kind.__subclasses__():
            if child.__module__ == "microseg.errors":
                add(child, depth + 1)

    add(MicrosegError, 0)
    return "\n".join(" ".join(line.split("\n")) for line in lines) + "\n"


# ---- architecture


def architecture() -> str:
    """A picture of the layers, from the contracts of import-linter and the docstrings of the packages."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (it["layers"] for it in tool["contracts"] if it.get("containers") == ["microseg"])
    rows = [["flows"], *([f"microseg.{name.strip()}" for name in layer.split("|")] for layer in layers)]
    width, height, gap = 760, 58, 8
    boxes = []
    for index, row in enumerate(rows):
        size = (width - gap * (len(row) - 1)) / len(row)
        for place, name in enumerate(row):
            x, y = place * (size + gap), index * (height + gap)
            frame = 'rx="4" fill="none" stroke="currentColor"'
            boxes.append(f'<rect x="{x:.0f}" y="{y}" width="{size:.0f}" height="{height}" {frame}/>')
            for line, text in enumerate([name, *_wrapped(summary(name), int((size - 16) / 6.6))]):
                style = 'font-weight="600"' if line == 0 else 'opacity="0.8"'
                where = f'x="{x + 8:.0f}" y="{y + 17 + line * 15}" font-size="11" fill="currentColor"'
                boxes.append(f"<text {where} {style}>{html.escape(text)}</text>")
    label = "Layers of the code: each imports from those below it only"
    size = f"-1 -1 {width + 2} {len(rows) * (height + gap)}"
    return f'<svg viewBox="{size}" role="img" aria-label="{label}">{"".join(boxes)}</svg>\n'


def summary(name: str) -> str:
    """First sentence of the docstring of a module or package."""
    path = ROOT.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=[^.][.]) ", text.replace("``", ""))[0]


def _wrapped(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width)
    return [*lines[:1], textwrap.shorten(" ".join(lines[1:]), width, placeholder=" …")] if len(lines) > 1 else lines


# ---- files of the repository that are pages, too


def changelog() -> str:
    """CHANGELOG.md without its title."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"\]\(docs/", "](../", text)


def mlflow_server() -> str:
    """mlflow/README.md without its title."""
    return (ROOT / "mlflow" / "README.md").read_text(encoding="utf-8").partition("\n")[2]


def deployment() -> str:
    """deploy/README.md without its title."""
    return (ROOT / "deploy" / "README.md").read_text(encoding="utf-8").partition("\n")[2]


GENERATED: dict[str, Callable[[], str]] = {
    "architecture": architecture,
    "changelog": changelog,
    "cli": cli,
    "deployment": deployment,
    "deployments": deployments,
    "environment": environment,
    "errors": errors,
    "events": events,
    "lab-file": lab_file,
    "mlflow-server": mlflow_server,
    "object-columns": object_columns,
    "parameters": parameters,
    "plugins": plugins,
    "record": record,
    "summary-columns": summary_columns,
}
"""What a marker is replaced by."""
