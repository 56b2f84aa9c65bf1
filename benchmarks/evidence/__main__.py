"""How well label-free scores rank networks, and the error rates of the promotion gate.

    python -m benchmarks.evidence --data labs --task wbc nuclei glands --grid var/adaptation --out var/evidence

The networks are those of ``python -m benchmarks.adaptation --out var/adaptation``, and degraded ones made of its
source_only and default: collapsed to one class, biased to it, with noise on the weights, with the statistics of another
lab, trained too little, adapted too little or too far. Each is a candidate to replace source_only, and every other
network of its task and seed.

The scores use the target's unlabelled images. The masks in its test/ are used for the report only: they give the true
Dice after everything else is measured, and no score, network or setting of microseg is selected with them. The
thresholds of single scores in the report are selected on the other tasks, and are not stored. The networks of a task
come from few trainings, so they are not independent: the intervals are too narrow.

Finished rows are stored: the same command continues where it stopped.
"""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.adaptation.tasks import add_task_arguments, find_tasks
from benchmarks.evidence.pairs import BETTER, WORSE, make_pairs, signed_score
from benchmarks.evidence.scores import SCORES
from benchmarks.evidence.study import Study
from benchmarks.evidence.summary import draw, gate_table, rank_table, rule_table, score_table
from benchmarks.results import Row, argument_parser, console_table, markdown_table
from microseg.config.settings import load_settings
from microseg.errors import MicrosegError

_IMAGES = 16


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, run the study, print its tables."""
    parser = argument_parser("benchmarks.evidence", __doc__)
    add_task_arguments(parser)
    parser.add_argument(
        "--grid", nargs="+", type=Path, required=True, help="--out of benchmarks.adaptation, or several"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="only these of the grid's seeds")
    parser.add_argument("--images", type=int, default=_IMAGES, help=f"evaluated, of each lab (default {_IMAGES})")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/evidence"))
    parser.add_argument("--set", nargs="+", default=[], metavar="section.name=value", help="override params.yaml")
    args = parser.parse_args(arguments)
    if args.images < 2:
        parser.error(f"argument --images: expected at least 2, got {args.images}")
    try:
        _run(args)
    except MicrosegError as error:
        parser.exit(2, f"{error}\n")


def _run(args: argparse.Namespace) -> None:
    out = args.out.absolute()
    policy = load_settings(args.set).params.gate
    tasks = find_tasks(args, out / "degraded")
    study = Study(out, tuple(grid.absolute() for grid in args.grid), args.images)
    planned = study.plan(tasks, args.seeds)
    console = Console()
    rows: list[Row] = []
    for row in study.run(planned):
        rows.append(row)
        console.print(f"{len(rows)}/{len(planned)}  {_message(row)}", markup=False, highlight=False)
    pairs = make_pairs(rows, policy)
    tables = {
        f"Rank correlation of each score with true Dice on the target ({len(rows)} networks)": rank_table(rows),
        "Decisions by single scores against source_only, with thresholds selected on the other tasks": score_table(
            [pair for pair in pairs if pair.first]
        ),
        "The gate": gate_table(pairs),
        "The gate's rules, candidates against source_only": rule_table([pair for pair in pairs if pair.first]),
    }
    for title, table in tables.items():
        console.print(console_table(table, title))
    note = f"worse: true Dice lower by more than {-WORSE:g}; better: higher by more than {BETTER:g}; 95 % intervals"
    console.print(note, highlight=False)
    parts = [f"## {title}\n\n{markdown_table(table)}" for title, table in tables.items()]
    (out / "tables.md").write_text("\n".join(parts) + f"\n{note}\n")
    draw(rows, pairs, out / "figure.png")
    console.print(f"{out / 'results.json'}\n{out / 'tables.md'}\n{out / 'figure.png'}")


def _message(row: Row) -> str:
    scores = ", ".join(f"{name.replace('_', ' ')} {SCORES[name] * signed_score(row, name):.2f}" for name in SCORES)
    return (
        f"{row['task']} seed {row['seed']} {row['network']}: target {row['target_dice']:.3f}; {scores}; "
        f"{row['cpu_seconds']:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
