"""Links lead somewhere, names exist, and what is generated from the code is complete."""

import re
import tomllib
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from flows.service import events
from microseg.config.settings import Params
from microseg.plugins import GROUPS
from tests.docs.pages import DOCS, PAGES, ROOT, blocks, generator, source, text

EVENTS = {value for value in vars(events).values() if isinstance(value, str) and value.startswith("microseg.")}
CURRENT = [
    page for page in PAGES if page not in ("CHANGELOG.md", "docs/about/changelog.md")
]  # these state former names


def _headings(page: str) -> set[str]:
    """Anchors of a page, by the rule of Python-Markdown and of GitHub."""
    plain = re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", name).strip().lower()) for name in names}


def _nav(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in _nav(part)]


def test_readme_is_short() -> None:
    assert len(source("README.md").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_headings(page: str) -> None:
    plain = re.sub(r"^```.*?^```|`[^`\n]*`", "", source(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", plain):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists(), link
        if page.startswith("docs/"):
            assert target.is_relative_to(DOCS), f"{link} is not a page of the site"
        if anchor:
            assert anchor in _headings(target.relative_to(ROOT).as_posix()), link


def test_every_page_is_in_the_navigation() -> None:
    pages = _nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(pages) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- generated" in source(page)])
def test_generated_parts_are_written(page: str) -> None:
    assert "<!-- generated" not in text(page)
    assert len(text(page)) > len(source(page)) + 100


@pytest.mark.parametrize("page", CURRENT)
def test_modules_and_events_exist(page: str) -> None:
    for name in re.findall(r"(?:python -m |`)((?:benchmarks|microseg|flows)(?:\.[a-z_]+)+)(?![\w.*<])", source(page)):
        parent, _, attribute = name.rpartition(".")
        known = name in {*GROUPS, *EVENTS} or (ROOT / "deploy" / name).exists() or find_spec(name)
        assert known or hasattr(__import__(parent, fromlist=[attribute]), attribute), name


@pytest.mark.parametrize("page", CURRENT)
def test_parameters_exist(page: str) -> None:
    sections = {
        name: field.annotation.model_fields for name, field in Params.model_fields.items() if _is_section(field)
    }
    for section, name in re.findall(r"(?:`|--set \"?|MICROSEG_)([a-z_]+)\.([a-z_]+)\b", source(page)):
        is_file = name in ("json", "yaml", "csv", "exe", "py")
        assert is_file or section not in sections or name in sections[section], f"{section}.{name}"


def _is_section(field: Any) -> bool:
    return hasattr(field.annotation, "model_fields")


def test_every_parameter_has_a_meaning() -> None:
    for line in text("docs/reference/parameters.md").splitlines():
        if line.startswith("| `"):
            assert line.rstrip(" |").count("|") == 4, f"no meaning: {line}"


def test_every_column_of_written_tables_is_described() -> None:
    from microseg.outputs.columns import column
    from microseg.outputs.measurements import OBJECT_COLUMNS

    page = text("docs/reference/outputs.md")
    for name in (*OBJECT_COLUMNS, *generator().summary_names()):
        assert f"| `{name}` |" in page, name
    assert column("area_um2")[0] == "µm²"
    assert column("mpp")[0] == "µm/px"
    with pytest.raises(KeyError):
        column("unknown_px")


def test_every_event_is_described() -> None:
    page = text("docs/reference/events.md")
    assert {"microseg.lab.arrived", "microseg.promotion.requested"} <= EVENTS
    assert [event for event in EVENTS if f"| `{event}` |" not in page] == []


def test_types_and_ranges_are_in_words() -> None:
    lines = {
        line.split("|")[1].strip(): line for line in text("docs/reference/parameters.md").splitlines() if "|" in line
    }
    assert "number, ≥ 0, < 1" in lines["`data.val_fraction`"]
    assert "`mlflow`, `prefect`, `gate`" in lines["`promotion.approval`"]
    assert "Number of optimization steps" in lines["`adapt.steps`"]  # a changed default keeps the meaning
    assert "2 values, each: number, > 0" in lines["`train.zoom_range`"]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_lab_files_are_valid(block: Any) -> None:
    from microseg.datasets.lab import LabMetadata

    values = yaml.safe_load(block.text)
    if "lab" in values:
        assert LabMetadata.model_validate(values).lab == values["lab"]
    else:
        assert set(values) <= {*LabMetadata.model_fields, *Params.model_fields}


def test_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    newest = re.search(r"^## (\S+)", source("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version
