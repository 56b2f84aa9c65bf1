"""Benchmark of adaptation methods: the fraction of the cross-lab gap that each one recovers.

    python -m benchmarks.adaptation --data labs --task wbc --task nuclei --seeds 0 1 2 --minutes 5 --out var/adaptation

A task is a folder with one labelled lab and one unlabelled lab, each with a held-out test set in ``test/``. For each
task and seed the source segmenter is trained once; every method starts from its weights, with the same network and the
same time limit, or with ``--steps`` the same number of steps, which does not depend on what else the machine does.
Finished results are kept: the same command resumes an interrupted benchmark. The tables can be written again from these
alone, also from those of several machines:

    python -m benchmarks.adaptation --out var/adaptation --report other/adaptation

With ``--json docs/benchmarks/results/adaptation/<name>.json`` the results become part of the documentation: see
``python -m benchmarks.report``.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.adaptation.grid import Grid
from benchmarks.adaptation.methods import ABLATIONS, METHODS, SOURCE_ONLY, STATISTICS, UPPER_BOUND
from benchmarks.adaptation.summary import draw, rank, summarize
from benchmarks.adaptation.tasks import add_task_arguments, find_tasks
from benchmarks.results import ResultFile, ResultRows, Row, argument_parser, console_table, markdown_table

_ALL = (SOURCE_ONLY, *METHODS, STATISTICS, UPPER_BOUND)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print the table and write it."""
    parser = argument_parser("benchmarks.adaptation", __doc__)
    add_task_arguments(parser)
    parser.add_argument("--methods", nargs="+", default=list(_ALL), choices=[*_ALL, *ABLATIONS], metavar="METHOD",
                        help=f"any of {', '.join(_ALL)}; or for the ablation {', '.join(ABLATIONS)}")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--minutes", type=float, default=5.0, help="time limit of each adaptation (default 5)")
    limits.add_argument("--steps", type=int, help="steps of each adaptation, in place of a time limit")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/adaptation"))
    parser.add_argument("--set", nargs="+", default=[], metavar="section.name=value", help="parameters to override")
    parser.add_argument("--report", nargs="*", type=Path, metavar="FOLDER",
                        help="only write the tables of --out, and of the results in further folders")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="also write all results to this file, with command, date, commit and machine")  # fmt: skip
    chosen = parser.parse_args(arguments)
    out, file = chosen.out.absolute(), ResultFile(chosen.json, "benchmarks.adaptation", arguments)
    if chosen.report is not None:
        rows = [row for folder in (out, *chosen.report) for row in ResultRows(folder).rows]
        _report(rows, out, "Finished results")
        file.write(rows=rows)
        return
    tasks = find_tasks(chosen, out / "generated")
    console = Console()
    limit = f"{chosen.steps} steps" if chosen.steps else f"{chosen.minutes:g} minutes"
    grid = Grid(out, None if chosen.steps else chosen.minutes, chosen.steps, tuple(chosen.set))
    total = len(tasks) * len(chosen.methods) * len(chosen.seeds)
    for number, row in enumerate(grid.run(tasks, chosen.methods, chosen.seeds), 1):
        console.print(
            f"{number}/{total}  {row['task']} {row['method']} seed {row['seed']}: "
            f"source {row['source_dice']:.3f}, target {row['target_dice']:.3f}, {row['minutes']:.1f} min"
        )
    _report(grid.rows, out, f"{limit} of adaptation")
    file.write(rows=grid.rows)


def _report(rows: Sequence[Row], out: Path, title: str) -> None:
    """Print and write the tables, and draw the figure."""
    if not rows:
        raise SystemExit(f"{out / 'results.json'}: expected results, found none; run the benchmark without --report.")
    console = Console()
    summary, ranks = summarize(rows), rank(rows)
    console.print(console_table(summary, f"{title}; mean ± standard deviation"))
    console.print(console_table(ranks, f"{title}; over all tasks"))
    (out / "table.md").write_text(f"{markdown_table(summary)}\n{markdown_table(ranks)}")
    draw(rows, out / "figure.png")
    console.print(f"{out / 'results.json'}\n{out / 'table.md'}\n{out / 'figure.png'}")


if __name__ == "__main__":
    main()
