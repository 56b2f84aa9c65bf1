"""The pages of the documentation, with what is generated from the code."""

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
OTHERS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "mlflow/README.md", "deploy/README.md")
PAGES = [*OTHERS, *sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def generator() -> ModuleType:
    """The module docs/generate.py, which is not in a package."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def source(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def text(page: str) -> str:
    """A page as it is built."""
    return str(generator().on_page_markdown(source(page)))


def blocks(language: str) -> list[Block]:
    """All blocks of a language."""
    found = []
    for page in PAGES:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", source(page), re.MULTILINE | re.DOTALL):
            found.append(Block(page, source(page)[: match.start()].count("\n") + 1, language, match[1]))
    return found
