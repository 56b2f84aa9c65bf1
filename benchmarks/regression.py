"""Processor time of imports, of the start of commands and of tiles, compared with an earlier commit.

In each round everything is measured once in this checkout and once in that commit, in separate processes on the same
machine, so that results do not depend on the machine, and hardly on its load.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import ResultFile, argument_parser, spread

__all__ = ["MEASUREMENTS", "Measurement", "main", "measure", "slower"]

_ROOT = Path(__file__).parent.parent

_TILES = """
import time
import numpy as np
import torch
from microseg.inference.engine import Engine
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter

torch.manual_seed(0)
engine = Engine(PyramidSegmenter(NetworkConfig(classes=("background", "gland"), mpp=1.0)).eval())
image = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
for _ in range(4):
    engine.probabilities(image)  # the network is prepared in the first tiles
began = time.process_time()
for _ in range(4):
    engine.probabilities(image)
print("SECONDS", (time.process_time() - began) / (4 * 1024 * 1024 / 1e6))
"""


@dataclass(frozen=True)
class Measurement:
    """Something whose processor time is measured in a process of its own.

    Attributes:
        name: Its name in the table.
        arguments: Arguments of the interpreter. A process that prints a line ``SECONDS`` with a number has measured
            itself; otherwise the whole process counts.
    """

    name: str
    arguments: tuple[str, ...]


MEASUREMENTS = (
    Measurement("import microseg", ("-c", "import microseg")),
    Measurement("import Segmenter, adapt, train", ("-c", "from microseg import Segmenter, adapt, train")),
    Measurement("import flows.segment", ("-c", "import flows.segment")),
    Measurement("microseg --help", ("-m", "flows.cli.main", "--help")),
    Measurement("microseg segment --help", ("-m", "flows.cli.main", "segment", "--help")),
    Measurement("microseg status", ("-m", "flows.cli.main", "status")),
    Measurement("a megapixel of tiles", ("-c", _TILES)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(
        "benchmarks.regression",
        "Compares processor times with an earlier commit; fails where one has grown.",
        "Example: python -m benchmarks.regression --base v0.2.0 --rounds 5",
    )
    parser.add_argument("--base", help="commit to compare with (default: the newest one that is a week older)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--limit", type=float, default=1.25, help="largest ratio (default: 1.25)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="measure only these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values to this file")
    chosen = parser.parse_args(arguments)
    file = ResultFile(chosen.json, "benchmarks.regression", arguments)
    if chosen.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {chosen.rounds}")
    if unknown := set(chosen.only or ()) - {it.name for it in MEASUREMENTS}:
        parser.error(
            f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(i.name for i in MEASUREMENTS)}"
        )
    selected = [it for it in MEASUREMENTS if not chosen.only or it.name in chosen.only]
    base = chosen.base or _a_week_before()
    seconds: dict[str, list[tuple[float, float]]] = {it.name: [] for it in selected}
    with checkout(base) as folder:
        for _ in range(chosen.rounds):
            for it in selected:
                seconds[it.name].append((measure(it, folder), measure(it, _ROOT)))
    print(f"Processor seconds at {base} and now; median (lowest to highest) of {chosen.rounds} rounds")
    print("| measured | before | now | now / before |")
    print("| --- | --- | --- | --- |")
    for name, pairs in seconds.items():
        before, now = zip(*pairs, strict=True)
        print(f"| {name} | {spread(before, 2)} | {spread(now, 2)} | {spread([b / a for a, b in pairs], 2)} |")
    file.write(base=base, seconds=seconds)
    if grown := slower(seconds, chosen.limit):
        raise SystemExit(
            f"Expected at most {chosen.limit:g} times the earlier processor time, got more: {', '.join(grown)}."
        )


def slower(seconds: dict[str, list[tuple[float, float]]], limit: float) -> list[str]:
    """Return what takes longer than it did, by the median of the ratios of all rounds, and by more than 20 ms.

    Args:
        seconds: For each name the seconds before and now, by round.
        limit: Largest ratio.
    """
    return [
        f"{name} ({ratio:.2f})"
        for name, pairs in seconds.items()
        if (ratio := statistics.median(now / before for before, now in pairs)) > limit
        and statistics.median(now - before for before, now in pairs) > 0.02
    ]


def measure(measurement: Measurement, folder: Path) -> float:
    """Processor seconds of a measurement with the code of a checkout.

    Args:
        measurement: What is measured.
        folder: The checkout.
    """
    with tempfile.TemporaryDirectory(prefix="microseg-regression-") as empty:
        output = Path(empty) / "output.txt"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MICROSEG_")}
        paths = os.pathsep.join([str(folder), str(_ROOT)])  # the latter for the entry points of a checkout
        environment |= {"PYTHONPATH": paths, "MICROSEG_HOME": str(Path(empty) / "home"), "OMP_NUM_THREADS": "1"}
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *measurement.arguments],
                cwd=empty,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        text = output.read_text(encoding="utf-8", errors="replace")
        if process.returncode:
            raise SystemExit(f"{measurement.name} failed in {folder}:\n{text}")
    for line in text.splitlines():
        if line.startswith("SECONDS "):
            return float(line.split()[1])
    return used.ru_utime + used.ru_stime


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A checkout of a commit, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="microseg-base-") as folder:
        target = Path(folder) / "checkout"
        _git("worktree", "add", "--quiet", "--detach", str(target), commit)
        try:
            # compiled first, as this checkout is
            subprocess.run(
                [sys.executable, "-m", "compileall", "-q", target / "microseg", target / "flows"], check=True
            )
            yield target
        finally:
            _git("worktree", "remove", "--force", str(target))


def _a_week_before() -> str:
    """The newest commit that is a week older than the current one; the oldest one where all are younger."""
    moment = int(_git("show", "--no-patch", "--format=%ct", "HEAD")) - 7 * 24 * 3600
    found = _git("rev-list", "--max-count=1", "--first-parent", f"--before={moment}", "HEAD")
    return (found or _git("rev-list", "--max-parents=0", "HEAD").splitlines()[-1])[:12]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
