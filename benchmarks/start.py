"""Processor time and memory of imports, which every process of microseg needs to start.

The baseline is ``flows.segment``, which imports PyTorch, MLflow and Prefect. In each round every module is imported
once in a separate process, and compared with the baseline of the same round.
"""

import os
import sys
from collections.abc import Sequence

from benchmarks.results import argument_parser, spread

__all__ = ["main"]

_BASELINE = "flows.segment"
_MODULES = (
    "microseg.config.params",
    "flows.service.local_servers",
    "flows.service.drop_folder",
    "flows.health.history",
    "flows.service.webhook_receiver",
    "flows.health.status",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(
        "benchmarks.start",
        "Measures the start of microseg's processes, compared with one that imports everything.",
        "Example: python -m benchmarks.start --rounds 5",
    )
    parser.add_argument("--rounds", type=int, default=3, help="imports of each module (default: 3)")
    parser.add_argument("modules", nargs="*", default=_MODULES, help="(default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {chosen.rounds}")
    names = (_BASELINE, *chosen.modules)
    rounds = [{name: measure(name) for name in names} for _ in range(chosen.rounds)]
    print("| module | processor, s | memory, MB | processor / baseline | memory / baseline |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        seconds, megabytes = zip(*(taken[name] for taken in rounds), strict=True)
        ratios = [[taken[name][part] / taken[_BASELINE][part] for taken in rounds] for part in (0, 1)]
        cells = (spread(seconds, 2), spread(megabytes, 0), spread(ratios[0], 3), spread(ratios[1], 3))
        print(f"| {name} | {' | '.join(cells)} |")


def measure(module: str) -> tuple[float, float]:
    """Processor seconds and peak megabytes of a process that imports a module."""
    process = os.posix_spawn(sys.executable, [sys.executable, "-c", f"import {module}"], os.environ)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{module} cannot be imported: see above.")
    kilobytes = used.ru_maxrss / 1024 if sys.platform == "darwin" else used.ru_maxrss
    return used.ru_utime + used.ru_stime, kilobytes / 1024


if __name__ == "__main__":
    main()
