"""Effect of `microseg.cpu` on this machine: memory that stays in the process, threads that wait passively.

Each measurement is a separate process, as the settings cannot be reverted in a process. Both sides alternate, A B A B,
so that other load on the machine affects both; ratios are computed for each pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import ResultFile, argument_parser, spread

__all__ = ["main"]

_BATCH = (4, 3, 256, 256)
_REPEATS = 3
_TASKS = ("forward", "step")
_TITLES = {"forward": "forward pass", "step": "training step"}
_EPILOG = """\
The network is the default one (resnet18) on a batch of 4 x 3 x 256 x 256, in 32 bits.
  memory    with and without tune_allocator(), in seconds
  waiting   with and without OMP_WAIT_POLICY=PASSIVE, while another process keeps one core busy
A ratio of 2 means twice as fast with the setting. Compare the spread; on a machine with other load, use more runs.

Example: python -m benchmarks.allocator --runs 9 --json allocator.json
"""


@dataclass(frozen=True)
class _Comparison:
    """Two environments for the same task; B is microseg's."""

    name: str
    a: Mapping[str, str | None]
    b: Mapping[str, str | None]
    busy: bool


_TUNE = "MICROSEG_BENCHMARK_TUNE"
_COMPARISONS = (
    _Comparison(
        "memory stays in the process",
        {"OMP_WAIT_POLICY": "PASSIVE", _TUNE: None},
        {"OMP_WAIT_POLICY": "PASSIVE", _TUNE: "1"},
        busy=False,
    ),
    _Comparison(
        "threads wait passively, one core busy",
        {"OMP_WAIT_POLICY": None, _TUNE: "1"},
        {"OMP_WAIT_POLICY": "PASSIVE", _TUNE: "1"},
        busy=True,
    ),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(
        "benchmarks.allocator",
        "Measures the effect of microseg's process settings on PyTorch on this machine.",
        _EPILOG,
    )
    parser.add_argument("--runs", type=int, default=5, help="pairs of measurements (default: 5)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all measurements to this file, in seconds"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    file = ResultFile(chosen.json, "benchmarks.allocator", arguments)
    if chosen.measure:
        print(json.dumps(_measure()))
        return
    if chosen.runs < 1:
        parser.error(f"--runs: expected at least 1, got {chosen.runs}")
    measured = {comparison.name: _pairs(comparison, chosen.runs) for comparison in _COMPARISONS}
    _print_table(measured)
    file.write(seconds=measured)


def _pairs(comparison: _Comparison, runs: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each task without and with the setting, for each pair."""
    pairs: dict[str, list[tuple[float, float]]] = {task: [] for task in _TASKS}
    with _busy_core() if comparison.busy else nullcontext():
        for run in range(1, runs + 1):
            print(f"{comparison.name}: pair {run} of {runs} ...", file=sys.stderr, flush=True)
            a, b = _in_process(comparison.a), _in_process(comparison.b)
            for task in _TASKS:
                pairs[task].append((a[task], b[task]))
    return pairs


def _in_process(changes: Mapping[str, str | None]) -> dict[str, float]:
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.allocator", "--measure"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


@contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _measure() -> dict[str, float]:
    """Median seconds of each task in this process."""
    import torch  # before microseg, which would set the waiting policy

    from microseg.cpu import tune_allocator
    from microseg.models.config import NetworkConfig
    from microseg.models.losses import segmentation_loss
    from microseg.models.network import PyramidSegmenter

    if _TUNE in os.environ:
        tune_allocator()
    torch.manual_seed(0)
    network: Any = PyramidSegmenter(NetworkConfig(classes=("background", "gland")))
    network.to(memory_format=torch.channels_last)
    images = torch.rand(_BATCH).contiguous(memory_format=torch.channels_last)  # (B, 3, H, W)
    masks = torch.randint(2, (_BATCH[0], *_BATCH[2:]))  # (B, H, W)
    optimizer = torch.optim.AdamW(network.parameters())

    @torch.inference_mode()
    def forward() -> None:
        network(images)

    def step() -> None:
        optimizer.zero_grad()
        segmentation_loss(network(images), masks).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    seconds = {"forward": _median_seconds(forward)}
    network.train()
    return seconds | {"step": _median_seconds(step)}


def _median_seconds(task: Callable[[], None]) -> float:
    task()  # warm-up
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _print_table(measured: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> None:
    rows = [("", "", "without, s", "with, s", "without / with")]
    for name, tasks in measured.items():
        for number, (task, pairs) in enumerate(tasks.items()):
            a, b = zip(*pairs, strict=True)
            ratios = [without / with_ for without, with_ in pairs]
            label = name if number == 0 else ""
            rows.append((label, _TITLES[task], spread(a, 3), spread(b, 3), spread(ratios, 2)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    print(f"batch {' x '.join(map(str, _BATCH))}, {os.cpu_count()} cores; median (least to most) of the runs")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
