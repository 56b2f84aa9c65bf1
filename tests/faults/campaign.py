"""Every fault at every write of every scenario, and the table of what survived."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from microseg.errors import MicrosegError
from tests.faults.injection import Fault, run_with_fault
from tests.faults.scenarios import SCENARIOS

__all__ = ["Trial", "rows", "table", "try_scenario"]


@dataclass
class Trial:
    """What became of one fault in one scenario.

    Attributes:
        points: Number of writes of the scenario.
        tries: Number of them that were tried.
        failures: What was wrong, for each that did not survive.
    """

    points: int = 0
    tries: int = 0
    failures: list[str] = field(default_factory=list)


def try_scenario(name: str, fault: Fault, folder: Path, most: int | None = None, seed: int = 0) -> Trial:
    """Let a fault happen at each write of a scenario; after it, the same is done again, and the state compared.

    Args:
        name: Name of the scenario.
        fault: The fault.
        folder: Empty folder for copies.
        most: Number of writes to try, chosen by the seed; None for all.
        seed: See ``most``.
    """
    scenario, base = SCENARIOS[name], folder / "base"
    for module in scenario.modules:  # here, once: each fork has them, and the writes of MLflow are watched
        import_module(module)
    base.mkdir(parents=True)
    _do(partial(scenario.prepare, base), base)
    expected, trial = None, Trial()
    copy = folder / "copy"  # always the same path: MLflow stores absolute ones
    base.rename(copy)
    shutil.copytree(copy, base)
    counted = run_with_fault(partial(scenario.act, copy), copy)
    assert counted.error is None, counted.error
    expected, trial.points = _do(partial(scenario.state, copy), copy), counted.writes
    points = list(range(1, trial.points + 1))
    chosen = points if most is None else sorted(random.Random(seed).sample(points, min(most, len(points))))
    for at in chosen:
        shutil.rmtree(copy)
        shutil.copytree(base, copy)
        trial.tries += 1
        first = run_with_fault(partial(scenario.act, copy), copy, fault, at)
        where = f"{name}, {fault} at write {at} of {trial.points}"
        if fault == "disk full" and first.error is not None and not _is_told(first.error):
            trial.failures.append(f"{where}: {type(first.error).__name__}: {first.error}")
        again = run_with_fault(partial(scenario.act, copy), copy)
        if again.error is not None:
            trial.failures.append(f"{where}: then {type(again.error).__name__}: {again.error}")
        elif (found := run_with_fault(partial(scenario.state, copy), copy)).error is not None:
            trial.failures.append(f"{where}: the state: {type(found.error).__name__}: {found.error}")
        elif found.value != expected:
            trial.failures.append(f"{where}: expected {expected}, got {found.value}")
    shutil.rmtree(folder)
    return trial


def _is_told(error: BaseException) -> bool:
    """Whether an error states that the disk is full."""
    return isinstance(error, MicrosegError) and ("disk is full" in str(error) or "No space left" in str(error))


def _do(action: Callable[[], Any], folder: Path) -> Any:
    result = run_with_fault(action, folder)
    if result.error is not None:
        raise result.error
    return result.value


def table(trials: dict[tuple[str, Fault], Trial]) -> str:
    """The trials as a table: fault → tries → survived."""
    lines = [f"{'scenario':<12}{'fault':<12}{'writes':>8}{'tries':>8}{'survived':>10}"]
    for (name, fault), it in trials.items():
        lines.append(f"{name:<12}{fault:<12}{it.points:>8}{it.tries:>8}{it.tries - len(it.failures):>10}")
    return "\n".join(lines)


def rows(trials: dict[tuple[str, Fault], Trial]) -> dict[str, object]:
    """The trials as columns and rows, for a file."""
    return {
        "columns": ["scenario", "fault", "writes", "tries", "survived"],
        "rows": [
            [name, fault, str(it.points), str(it.tries), str(it.tries - len(it.failures))]
            for (name, fault), it in trials.items()
        ],
    }
