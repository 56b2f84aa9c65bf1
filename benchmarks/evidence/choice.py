"""Choosing one of several adaptations of a lab without labels: what each rule of choice loses against the best one.

    python -m benchmarks.evidence.choice --data labs --task wbc nuclei --grid var/adaptation --out var/choice

The networks to choose from are ``source_only``, its normalization statistics mixed with the lab's without training,
``default``, and networks on the line of weights through ``source_only`` and ``default``. Each rule takes the network of
the best score; it does not take one that lost more Dice on the source lab than the gate allows. A rule has no
threshold, so that nothing is fitted to the tasks. The masks of the target's test images are read for the report only.

Finished rows are stored: the same command continues where it stopped. ``--report`` writes the table of all of them.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.adaptation.methods import DEFAULT, SOURCE_ONLY
from benchmarks.adaptation.tasks import add_task_arguments, find_tasks
from benchmarks.evidence.pairs import signed_score
from benchmarks.evidence.scores import SCORES
from benchmarks.evidence.study import Study
from benchmarks.results import ResultRows, Row, argument_parser, console_table, markdown_table
from microseg.config.settings import load_settings
from microseg.registry.model_card import measurement_name

__all__ = ["choice_table", "choose"]

_CANDIDATES = (
    SOURCE_ONLY,
    "statistics, share 0.5",
    DEFAULT,
    f"{DEFAULT}, 0.5 of the way",
    f"{DEFAULT}, 1.5 of the way",
)
_SCORES = (
    "augmentation_consistency",
    "disturbance_consistency",
    "stain_explained_variance",
    "forward_validation",
    "reverse_validation",
    "entropy",
)
_IMAGES = 4

Rows = Sequence[Mapping[str, Any]]
Rule = Callable[[Rows], Mapping[str, Any]]


def choose(rows: Rows, score: str, max_source_loss: float) -> Mapping[str, Any]:
    """Choose the network of the best score, the lowest entropy for example; of equal ones the first.

    Args:
        rows: The networks of a task and seed, ``source_only`` among them.
        score: One of `benchmarks.evidence.scores.SCORES`.
        max_source_loss: Dice on the source lab that the choice may lose against ``source_only``.
    """
    least = _named(rows, SOURCE_ONLY)["source_dice"] - max_source_loss
    return max((row for row in rows if row["source_dice"] >= least), key=lambda row: signed_score(row, score))


def choice_table(rows: Rows, max_source_loss: float) -> pd.DataFrame:
    """Tabulate the rules of choice.

    Args:
        rows: Rows of the study, of several tasks and seeds.
        max_source_loss: See `choose`.

    Returns:
        One line per rule: the loss of Dice against the best network, mean and largest; the gain over ``source_only``,
        mean and smallest; and how often the best network was chosen.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["seed"]), []).append(row)
    rules: dict[str, Rule] = {
        "always source_only": lambda group: _named(group, SOURCE_ONLY),
        "always default": lambda group: _named(group, DEFAULT),
    }
    for score in _SCORES:
        best = "highest" if SCORES[score] > 0 else "lowest"
        rules[f"{best} {measurement_name(score)}"] = partial(choose, score=score, max_source_loss=max_source_loss)
    return pd.DataFrame([{"choice": name, **_line(rule, list(groups.values()))} for name, rule in rules.items()])


def _line(rule: Rule, groups: Sequence[Rows]) -> dict[str, str]:
    chosen = np.array([rule(group)["target_dice"] for group in groups])
    best = np.array([max(row["target_dice"] for row in group) for group in groups])
    first = np.array([_named(group, SOURCE_ONLY)["target_dice"] for group in groups])
    regret, gain = best - chosen, chosen - first
    return {
        "loss against the best, mean": f"{regret.mean():.3f}",
        "largest": f"{regret.max():.3f}",
        "gain over source_only, mean": f"{gain.mean():+.3f}",
        "smallest": f"{gain.min():+.3f}",
        "best chosen": f"{int((regret == 0).sum())}/{len(groups)}",
    }


def _named(rows: Rows, name: str) -> Mapping[str, Any]:
    return next(row for row in rows if row["network"] == name)


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, measure the networks, print the table and write it."""
    parser = argument_parser("benchmarks.evidence.choice", __doc__)
    add_task_arguments(parser)
    parser.add_argument("--grid", nargs="+", type=Path, default=[], help="--out of benchmarks.adaptation, or several")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these of the grid's seeds")
    parser.add_argument("--images", type=int, default=_IMAGES, help=f"evaluated, of each lab (default {_IMAGES})")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/choice"))
    parser.add_argument("--report", action="store_true", help="only write the table of all finished rows of --out")
    args = parser.parse_args(arguments)
    out, console = args.out.absolute(), Console()
    rows = ResultRows(out).rows if args.report else _measure(args, out, console)
    table = choice_table(rows, load_settings([]).params.gate.max_source_loss)
    count = len({(row["task"], row["seed"]) for row in rows})
    console.print(console_table(table, f"Choice among {len(_CANDIDATES)} networks, {count} tasks and seeds"))
    (out / "table.md").write_text(markdown_table(table))
    console.print(f"{out / 'results.json'}\n{out / 'table.md'}")


def _measure(args: argparse.Namespace, out: Path, console: Console) -> list[Row]:
    tasks = find_tasks(args, out / "generated")
    study = Study(out, tuple(grid.absolute() for grid in args.grid), args.images)
    planned = [it for it in study.plan(tasks, args.seeds) if it[1].name in _CANDIDATES]
    rows: list[Row] = []
    for row in study.run(planned):
        rows.append(row)
        console.print(
            f"{len(rows)}/{len(planned)}  {row['task']} seed {row['seed']} {row['network']}: {row['target_dice']:.3f}",
            markup=False,
            highlight=False,
        )
    return rows


if __name__ == "__main__":
    main()
