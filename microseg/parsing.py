"""YAML, JSON and XML from outside: bounded in size and depth, and every fault is a `ParseError`."""

import json
import stat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import orjson
import yaml

from microseg.errors import ParseError
from microseg.escaping import printable

__all__ = ["file_kind", "parse_json", "parse_xml", "parse_yaml", "read_text"]

_DEEPEST = 100  # levels
_YAML_BYTES = 2**20
_TEXT_BYTES = 2**30


def read_text(path: Path, limit: int = _YAML_BYTES) -> str:
    """Read a text file in UTF-8, with or without byte-order mark.

    Args:
        path: The file.
        limit: Largest size, in bytes.

    Raises:
        ParseError: It is missing, is no regular file (a FIFO, a device, a folder), is too large, or not in UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ParseError(f"expected a text file, got {file_kind(status.st_mode)}")
        if status.st_size > limit:
            raise ParseError(f"expected at most {limit:,} bytes of text, got {status.st_size:,}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ParseError(f"expected a text file in UTF-8, got: {_describe(error)}") from error


def file_kind(mode: int) -> str:
    """Name of the kind of a file, by its mode."""
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def parse_yaml(text: str) -> Any:
    """Parse YAML: dates are texts, and aliases, repeated keys and tags other than YAML's own are refused.

    Raises:
        ParseError: It is not such YAML, has over 1 MiB, or over 100 levels.
    """
    if len(text) > _YAML_BYTES:
        raise ParseError(f"expected at most {_YAML_BYTES:,} characters of YAML, got {len(text):,}")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: TID251  # nosec B506 (a SafeLoader)
    except ParseError:
        raise
    except Exception as error:  # values such as `!!float x` make it raise anything
        raise ParseError(f"expected YAML, got: {_describe(error)}") from error


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which can multiply a small text to any size, and without dates, which can be none."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ParseError("expected YAML without aliases (*name), got one. Write the value out")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ParseError(f"expected at most {_DEEPEST} levels of YAML, got more")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ParseError(f"expected each key once, got {', '.join(map(repr, repeated[:3]))} again")
        return super().construct_mapping(node, deep=deep)


def parse_json(text: str | bytes, *, any_names: bool = False) -> Any:
    """Parse JSON; numbers are finite.

    Args:
        text: The JSON.
        any_names: Accept halves of a surrogate pair, by which `json.dumps` writes the bytes of a file name that is not
            UTF-8; for files of microseg itself.

    Raises:
        ParseError: It is not JSON, has over 1 GiB, or over 1000 levels.
    """
    if len(text) > _TEXT_BYTES:
        raise ParseError(f"expected at most {_TEXT_BYTES:,} bytes of JSON, got {len(text):,}")
    try:
        if any_names:
            return json.loads(text, parse_constant=_refuse_constant)  # noqa: TID251
        return orjson.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"expected JSON, got: {_describe(error)}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def parse_xml(data: bytes, limit: int = _TEXT_BYTES) -> ElementTree.Element:
    """Parse XML without a document type, so that there are no entities of its own and nothing is fetched.

    Args:
        data: The XML.
        limit: Largest size, in bytes.

    Raises:
        ParseError: It is not such XML, is larger, or has over 100 levels.
    """
    if len(data) > limit:
        raise ParseError(f"expected at most {limit:,} bytes of XML, got {len(data):,}")
    builder = ElementTree.TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ParseError(f"expected at most {_DEEPEST} levels of XML, got more")
        builder.start(_clark(name), {_clark(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_clark(name))

    def refuse(*_: object) -> None:
        raise ParseError("expected XML without a document type (<!DOCTYPE …>), got one. Export it without")

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except ParseError:
        raise
    except Exception as error:  # of an encoding that does not exist: LookupError, ValueError
        raise ParseError(f"expected XML, got: {_describe(error)}") from error


def _clark(name: str) -> str:
    """``{namespace}name``, as ElementTree writes names."""
    return f"{{{name}" if "}" in name else name


def _describe(error: Exception) -> str:
    """The message of a parser on one line, with no more than a few characters of the text."""
    text = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:  # its text quotes the file
        text = f"{error.problem} in line {error.problem_mark.line + 1}"
    return printable(" ".join(text.split()))[:300] or type(error).__name__
