"""Write the tables of the documentation from the JSON in docs/benchmarks/results.

    python -m benchmarks.report           # write them; `make benchmarks-report` runs this
    python -m benchmarks.report --check   # only state which pages differ from the results

A table is added by two lines in a page, between which it is written:

    <!-- results: FILE TABLE -->
    <!-- end of results -->

FILE is a file in docs/benchmarks/results without ``.json``, or a pattern such as ``adaptation/nine-pairs*``. TABLE is
one of the tables in it, or one that is computed: ``before-after``, ``each-seed``, ``methods``, ``short`` and
``targets`` from files of ``python -m benchmarks.adaptation --json``, ``gpu-correctness`` and ``gpu-speed`` from those
of ``python -m benchmarks.gpu --json``, ``objects``, ``objects-adapted``, ``objects-targets`` and ``objects-speed`` from
those of ``python -m benchmarks.objects --json``. The pages of the data sets, docs/benchmarks/adaptation, are written as
a whole.
"""

from pathlib import Path

from rich.console import Console

from benchmarks.report.data_sets import data_set_pages, navigation
from benchmarks.report.pages import DOCS, rewritten
from benchmarks.results import argument_parser
from microseg.files import write_text_file


def main(arguments: list[str] | None = None) -> None:
    """Write the pages, or state which differ."""
    parser = argument_parser("benchmarks.report", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page differs")
    chosen = parser.parse_args(arguments)
    root = DOCS.parent
    wanted = data_set_pages(DOCS / "benchmarks" / "adaptation")
    for page in [root / "README.md", *sorted(DOCS.rglob("*.md"))]:
        if page not in wanted:
            wanted[page] = rewritten(page.read_text(encoding="utf-8"), page)
    wanted[root / "mkdocs.yml"] = navigation((root / "mkdocs.yml").read_text(encoding="utf-8"), wanted)
    differing = [page for page, text in wanted.items() if _differs(page, text)]
    for page in differing:
        if not chosen.check:
            page.parent.mkdir(exist_ok=True)
            write_text_file(page, wanted[page])
        Console().print(f"{page.relative_to(root)}: {'differs from its results' if chosen.check else 'written'}")
    if chosen.check and differing:
        raise SystemExit("Expected pages as `make benchmarks-report` writes them; run it.")


def _differs(page: Path, text: str) -> bool:
    return not page.exists() or page.read_text(encoding="utf-8") != text


if __name__ == "__main__":
    main()
