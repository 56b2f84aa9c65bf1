"""Tables of adaptations, joined from several files of ``python -m benchmarks.adaptation --json``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import pandas as pd

from benchmarks.adaptation.methods import DEFAULT, SOURCE_ONLY, UPPER_BOUND
from benchmarks.adaptation.summary import rank
from benchmarks.results import Row, markdown_table

__all__ = ["Adapted", "adapted", "before_after", "each_seed", "methods", "short", "targets"]

_SHORT = {
    "wbc": "white blood cells, two smear preparations",
    "nuclei": "nuclei, H&E → DAB-H",
    "glands": "glands, colon → prostate",
}
_SAME = 1e-6
_HARM = 0.01  # loss of Dice from which an adaptation harmed a lab
_GAP = 0.03  # smallest distance to the upper bound of which a part is meaningful
_MEAN, _EACH = 0.8, 0.6  # parts of the distance that are wanted: over all tasks, on each


@dataclass(frozen=True)
class Adapted:
    """One adaptation.

    Attributes:
        task: Name of the task.
        method: Method of adaptation.
        seed: Seed of the training and the adaptation.
        before: Dice on the target lab of the model that it started from.
        after: Dice on the target lab.
        source_before: Dice on the source lab of the model that it started from.
        source_after: Dice on the source lab.
        upper_bound: Dice on the target lab of a model that is trained on its masks; None where it was not measured.
    """

    task: str
    method: str
    seed: int
    before: float
    after: float
    source_before: float
    source_after: float
    upper_bound: float | None

    @property
    def gain(self) -> float:
        """Gain of Dice on the target lab."""
        return self.after - self.before

    @property
    def recovered(self) -> float | None:
        """Part of the distance to the upper bound that is recovered; None where it is unknown or small."""
        if self.upper_bound is None or self.upper_bound - self.before < _GAP:
            return None
        return self.gain / (self.upper_bound - self.before)


def adapted(results: Sequence[dict[str, Any]]) -> list[Adapted]:
    """Join the rows of several files.

    An adaptation is compared with ``source_only`` of its own file, or of another one if that has none; an upper bound
    may come from any.

    Raises:
        ValueError: Two files have different results for the same method, task and seed, or a first model is missing.
    """
    found: dict[tuple[Any, ...], Adapted] = {}
    for result in results:
        rows = result["rows"]
        for row in rows:
            if row["method"] in (SOURCE_ONLY, UPPER_BOUND):
                continue
            first = _find(rows, row, SOURCE_ONLY) or next(_all(results, row, SOURCE_ONLY), None)
            if first is None:
                raise ValueError(f"Expected {SOURCE_ONLY} of {row['task']}, seed {row['seed']}; no file has it.")
            bounds = [it["target_dice"] for it in _all(results, row, UPPER_BOUND)]
            it = Adapted(
                task=row["task"],
                method=row["method"],
                seed=row["seed"],
                before=first["target_dice"],
                after=row["target_dice"],
                source_before=first["source_dice"],
                source_after=row["source_dice"],
                upper_bound=mean(bounds) if bounds else None,
            )
            known = found.setdefault((it.task, it.method, it.seed), it)
            if abs(known.after - it.after) > _SAME:
                raise ValueError(
                    f"{result['file']}: {it.task}, {it.method}, seed {it.seed} is {it.after:.4f} here and "
                    f"{known.after:.4f} in another file; expected one result, delete the older one."
                )
    return list(found.values())


def before_after(results: Sequence[dict[str, Any]]) -> str:
    """A line for each task: mean Dice over the seeds before and after the default adaptation."""
    lines = []
    for task, group in _by_task(_of(adapted(results), DEFAULT)):
        bounds = {it.seed: it.upper_bound for it in group if it.upper_bound is not None}
        parts = [it.recovered for it in group if it.recovered is not None]
        lines.append(
            {
                "task": task,
                "seeds": ", ".join(str(it.seed) for it in group),
                "target, before → after": _change(group, "before", "after"),
                "smallest gain": f"{min(it.gain for it in group):+.3f}",
                "source, before → after": _change(group, "source_before", "source_after"),
                "upper bound": f"{mean(bounds.values()):.3f}" if bounds else "–",
                "recovered": f"{100 * mean(parts):.0f} %" if parts else "–",
            }
        )
    return _table(lines)


def each_seed(results: Sequence[dict[str, Any]]) -> str:
    """A line for each method and seed."""
    lines = [
        {
            "method": it.method,
            "seed": it.seed,
            "target": _change([it], "before", "after"),
            "gain": f"{it.gain:+.3f}",
            "source": _change([it], "source_before", "source_after"),
            "upper bound": "–" if it.upper_bound is None else f"{it.upper_bound:.3f}",
            "recovered": "–" if it.recovered is None else f"{100 * it.recovered:.0f} %",
        }
        for it in sorted(adapted(results), key=lambda it: (it.method != DEFAULT, it.method, it.seed))
    ]
    return _table(lines)


def short(results: Sequence[dict[str, Any]]) -> str:
    """Three tasks, before and after the default adaptation: the table of the README."""
    groups = dict(_by_task(_of(adapted(results), DEFAULT)))
    lines = [
        {
            "task": title,
            "seeds": ", ".join(str(it.seed) for it in groups[task]),
            "before → after": _change(groups[task], "before", "after"),
        }
        for task, title in _SHORT.items()
    ]
    return _table(lines)


def methods(results: Sequence[dict[str, Any]]) -> str:
    """A line for each method, over all tasks and seeds: mean rank, gain, worst case.

    Raises:
        ValueError: Methods of one task and seed started from different first models.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for result in results:
        for row in result["rows"]:
            known = rows.setdefault((row["task"], row["method"], row["seed"]), row)
            if abs(known["target_dice"] - row["target_dice"]) > _SAME:
                raise ValueError(
                    f"{result['file']}: {row['task']}, {row['method']}, seed {row['seed']} differs from another file; "
                    "expected methods that start from the same first model."
                )
    return markdown_table(rank(list(rows.values())))


def targets(results: Sequence[dict[str, Any]]) -> str:
    """What is wanted of the default adaptation, and reached: harm on either lab, part of the distance recovered."""
    runs = _of(adapted(results), DEFAULT)
    least = min(runs, key=lambda it: it.gain)
    loss = max(runs, key=lambda it: it.source_before - it.source_after)
    lost = loss.source_before - loss.source_after
    known = [(task, [it.recovered for it in group if it.recovered is not None]) for task, group in _by_task(runs)]
    parts = {task: mean(of) for task, of in known if of}
    short_of = ", ".join(f"{task} {100 * part:.0f} %" for task, part in parts.items() if part < _EACH)
    few = f" ({len(parts)} of {len(known)} tasks)"
    lines = [
        {
            "wanted": f"no adaptation loses more than {_HARM:g} Dice on its target lab",
            "reached": f"{_yes(least.gain >= -_HARM)}: {sum(it.gain < -_HARM for it in runs)} of {len(runs)} do "
            f"({len(known)} tasks); mean gain {mean(it.gain for it in runs):+.3f}, "
            f"smallest {least.gain:+.3f} ({least.task}, seed {least.seed})",
        },
        {
            "wanted": f"at most {_HARM:g} Dice lost on the source lab",
            "reached": f"{_yes(lost <= _HARM)}: largest loss {lost:.3f} ({loss.task}, seed {loss.seed})",
        },
    ]
    if parts:
        average = mean(parts.values())
        lines += [
            {
                "wanted": f"{100 * _MEAN:.0f} % recovered, in the mean over the tasks",
                "reached": f"{_yes(average >= _MEAN)}: {100 * average:.0f} %{few}",
            },
            {
                "wanted": f"{100 * _EACH:.0f} % recovered on each task",
                "reached": f"{_yes(not short_of)}{few}" + (f": {short_of}" if short_of else ""),
            },
        ]
    return _table(lines)


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _of(runs: Sequence[Adapted], method: str) -> list[Adapted]:
    chosen = [it for it in runs if it.method == method]
    if not chosen:
        raise ValueError(f"Expected results of {method}, got {sorted({it.method for it in runs})}.")
    return chosen


def _by_task(runs: Sequence[Adapted]) -> Iterator[tuple[str, list[Adapted]]]:
    for task in dict.fromkeys(it.task for it in runs):
        yield task, sorted((it for it in runs if it.task == task), key=lambda it: it.seed)


def _change(runs: Sequence[Adapted], before: str, after: str) -> str:
    first, second = (mean(getattr(it, name) for it in runs) for name in (before, after))
    return f"{first:.3f} → {second:.3f}"


def _all(results: Sequence[dict[str, Any]], row: Row, method: str) -> Iterator[Row]:
    for result in results:
        if (found := _find(result["rows"], row, method)) is not None:
            yield found


def _find(rows: Sequence[Row], row: Row, method: str) -> Row | None:
    wanted = (row["task"], method, row["seed"])
    return next((it for it in rows if (it["task"], it["method"], it["seed"]) == wanted), None)


def _table(lines: Sequence[dict[str, Any]]) -> str:
    return markdown_table(pd.DataFrame(lines))
