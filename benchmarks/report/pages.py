"""Blocks of results in pages: what stands between two markers is written from the JSON that the first one names.

    <!-- results: adaptation/nine-pairs* before-after -->
    ...
    <!-- end of results -->

The first word is a file in ``docs/benchmarks/results`` without its ending, or a pattern for several; the second one is
the name of a table in it, or of one of `VIEWS`.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from benchmarks.report.adaptation import before_after, each_seed, methods, short, targets
from benchmarks.report.gpu import gpu_correctness, gpu_name, gpu_speed
from benchmarks.report.objects import adapted_object_table, object_speed_table, object_table, object_targets
from benchmarks.results import markdown_table

__all__ = ["DOCS", "RESULTS", "VIEWS", "ResultsError", "load", "render", "rewritten"]

DOCS: Final = Path(__file__).parents[2] / "docs"
RESULTS: Final = DOCS / "benchmarks" / "results"

VIEWS: Final[Mapping[str, Callable[[Sequence[dict[str, Any]]], str]]] = {
    "before-after": before_after,
    "each-seed": each_seed,
    "methods": methods,
    "short": short,
    "targets": targets,
    "gpu-correctness": gpu_correctness,
    "gpu-speed": gpu_speed,
    "objects": object_table,
    "objects-adapted": adapted_object_table,
    "objects-targets": object_targets,
    "objects-speed": object_speed_table,
}
"""Tables that are computed from results, by the name that a marker uses."""

_SHOWN = 2  # files of results that are named without a click

_BLOCK = re.compile(r"^(<!-- results: (\S+) (\S+) -->)\n.*?^<!-- end of results -->$", re.MULTILINE | re.DOTALL)


class ResultsError(Exception):
    """A marker names results that do not exist, or results contradict each other."""


def load(pattern: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Contents of the JSON files of a pattern, sorted by name; the key ``file`` is the path of each.

    Raises:
        ResultsError: No file has such a name.
    """
    files = sorted(folder.glob(f"{pattern}.json"))
    if not files:
        raise ResultsError(f"Expected {folder / pattern}.json, found no such file.")
    return [json.loads(file.read_text(encoding="utf-8")) | {"file": file} for file in files]


def rewritten(text: str, page: Path, folder: Path = RESULTS) -> str:
    """The text of a page with its blocks written again.

    Args:
        text: Text of the page.
        page: Path of the page, which links to the JSON start from.
        folder: Folder of the results.

    Raises:
        ResultsError: A block names no results, or has no end.
    """
    if len(re.findall(r"^<!-- results: ", text, re.MULTILINE)) != len(_BLOCK.findall(text)):
        raise ResultsError(f"{page}: expected `<!-- end of results -->` after each `<!-- results: FILE TABLE -->`.")

    def block(found: re.Match[str]) -> str:
        inside = render(found[2], found[3], page, folder)
        return f"{found[1]}\n\n{inside}\n<!-- end of results -->"

    return _BLOCK.sub(block, text)


def render(pattern: str, name: str, page: Path, folder: Path = RESULTS, task: str | None = None) -> str:
    """A table in Markdown, with a line that states what it was measured with.

    Args:
        pattern: Name of a file in the folder without its ending, or a pattern for several.
        name: A table in the file, or one of `VIEWS`.
        page: Page that the table is for.
        folder: Folder of the results.
        task: Of results of several tasks, only this one.
    """
    results = load(pattern, folder)
    if task is not None:
        results = [it | {"rows": [row for row in it["rows"] if row["task"] == task]} for it in results]
        results = [it for it in results if it["rows"]]
    if name in VIEWS:
        text = VIEWS[name](results)
        sources = [(it.get("provenance") or _gpu_provenance(it), it["file"]) for it in results]
    else:
        (result,) = results
        if name not in result.get("tables", {}):
            raise ResultsError(f"{result['file']}: expected a table {name}, got {sorted(result.get('tables', {}))}.")
        table = result["tables"][name]
        text = markdown_table(pd.DataFrame(table["rows"], columns=table["columns"]))
        sources = [(result["provenance"] | table.get("provenance", {}), result["file"])]
    if name in ("targets", "short"):  # the page that is next to it, or linked beside it, states the commands
        return text
    lines = "".join(_source(*it, page) for it in sources)
    if len(sources) > _SHOWN:
        lines = f'<details markdown="1">\n<summary>Commands, dates and machines</summary>\n\n{lines}\n</details>\n'
    return f"{text}\n{lines}"


def _gpu_provenance(result: dict[str, Any]) -> dict[str, Any]:
    """What `benchmarks.gpu` was run with, from the settings and machines in its file."""
    given, machine = result["command"], next(iter(result["sections"].values()))["machine"]
    command = f"python -m benchmarks.gpu --minutes {given['minutes']:g} --only {given['only']}"
    facts = f"{gpu_name(result)}, {machine['threads']} cores, PyTorch {machine['torch']}"
    ended = "; ".join(f"section {name}: {it['error']}" for name, it in result["sections"].items() if it["error"])
    return {"command": command, "machine": facts, "recorded": ended} | {
        key: result.get(key) for key in ("date", "commit")
    }


def _source(provenance: Mapping[str, Any], file: Path, page: Path) -> str:
    """One line about a file of results: command, date, commit, machine, link."""
    link = Path(os.path.relpath(file, page.parent)).as_posix()
    commit = f"commit {provenance['commit']}" if provenance.get("commit") else ""
    facts = [provenance.get("date"), commit, provenance.get("machine"), provenance.get("recorded")]
    return f"<small>`{provenance['command']}`: {'; '.join(filter(None, facts))} ([JSON]({link}))</small>  \n"
