"""Correctness and speed on one GPU, in one command: at most 8 minutes, by default 4.

    python -m benchmarks.gpu --json gpu.json

It needs PyTorch, timm and the small packages of the core; what needs another one is skipped and says so. Sections:
  correctness  CUDA against float64 on the CPU: forward pass, losses, gradients, gradient reversal, adaptive step,
               tiling, resumed training
  inference    bare forward pass, engine in memory, files to labels and to all outputs, a slide, MONAI's sliding window
  training     steps a second against the bare step on a fixed batch
  adaptation   one generated lab, 60 seconds: Dice before and after
  compilation  torch.compile on and off

Each section runs in a process of its own with a time limit, so that none takes the others down; the JSON file is
written after each. Memory is measured in each section. A folder given by --folder keeps its data for the next time.
`--device cpu --quick` shows that the benchmark itself works.
"""

import argparse
import contextlib
import faulthandler
import importlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.results import ResultRows, Row, argument_parser, markdown_table
from microseg.files import atomic_write

__all__ = ["SECTIONS", "main"]

SECTIONS = {"correctness": 0.12, "inference": 0.3, "training": 0.2, "adaptation": 0.27, "compilation": 0.11}
"""Share of the time of each section; a section that needs less leaves it to the later ones."""
_DATA_SECONDS = 120  # at most
_GRACE = 1.5  # factor of a section's time after which it is ended


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; the exit status is 1 if one failed or a check did not pass."""
    parser = argument_parser("benchmarks.gpu", __doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--minutes", type=float, default=4.0, help="time for everything (default: 4)")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="A,B", help="sections to run")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast it is")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="default: gpu.json")
    parser.add_argument(
        "--folder", type=Path, help="folder for generated data, which is kept; default: a temporary one"
    )
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.only.split(",") if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="microseg-gpu-")))
        return _all(chosen, folder.absolute())


def _all(chosen: argparse.Namespace, folder: Path) -> int:
    began = time.monotonic()
    report: dict[str, Any] = {"command": vars(chosen) | {"folder": str(folder), "json": str(chosen.json)}}
    report["machine"] = {"cores": os.cpu_count(), "python": platform.python_version()}
    report["sections"] = {}
    left = {name: share for name, share in SECTIONS.items() if name in chosen.only.split(",")}
    for name in ("data", *left):  # once for all their processes, as it takes seconds
        with contextlib.suppress(ImportError):  # the section reports it
            importlib.import_module(f"benchmarks.gpu.{name}")
    for name in ("data", *left):
        remaining = 60 * chosen.minutes - (time.monotonic() - began)
        seconds = _DATA_SECONDS if name == "data" else max(15.0, remaining * left[name] / sum(left.values()))
        print(f"{name}: {seconds:.0f} s at most, of {remaining:.0f} s", file=sys.stderr, flush=True)
        report["sections"][name] = _run(chosen, folder, name, seconds)
        left = {it: share for it, share in left.items() if it != name}
        report["seconds"] = round(time.monotonic() - began, 1)
        with atomic_write(chosen.json) as part:
            part.write_text(json.dumps(report, indent=1) + "\n")
    table = _table(report["sections"])
    print(markdown_table(table), flush=True)
    failed = [name for name, section in report["sections"].items() if section["error"]]
    wrong = [row["name"] for section in report["sections"].values() for row in section["rows"] if _wrong(row)]
    for name in failed:
        print(f"{name} FAILED: {report['sections'][name]['error'][-1500:]}", flush=True)
    print(
        f"{report['seconds']} s; failed sections: {failed or 'none'}; checks not passed: {wrong or 'none'}", flush=True
    )
    return int(bool(failed or wrong))


def _run(chosen: argparse.Namespace, folder: Path, name: str, seconds: float) -> dict[str, Any]:
    """Run one section in a process, and read what it stored, also when it was ended."""
    store = folder / "results" / name
    began = time.monotonic()
    section = argparse.Namespace(**vars(chosen) | {"folder": folder})
    process = multiprocessing.get_context("fork").Process(target=_section, args=(section, name, seconds))
    process.start()
    limit = 600.0 if chosen.quick else _GRACE * seconds + 15
    process.join(limit)
    error = "" if process.exitcode == 0 else f"the process ended with status {process.exitcode}"
    if process.exitcode is None:
        error = f"ended after {limit:.0f} s"
        process.kill()
        process.join()
    failure = store / "error.txt"
    return {
        "seconds": round(time.monotonic() - began, 1),
        "error": failure.read_text() if failure.exists() else error,
        "machine": json.loads((store / "machine.json").read_text()) if (store / "machine.json").exists() else {},
        "rows": ResultRows(store).rows,
    }


def _section(chosen: argparse.Namespace, name: str, seconds: float) -> None:
    """Run one section in this process."""
    sys.stdout = sys.stderr
    store = chosen.folder / "results" / name
    store.mkdir(parents=True, exist_ok=True)
    for left in store.iterdir():
        left.unlink()
    faulthandler.dump_traceback_later(_GRACE * seconds + 10)  # where it is, before it is ended
    try:
        import torch

        from benchmarks.gpu.measure import Results, Setup

        setup = Setup(torch.device(chosen.device), chosen.quick, chosen.folder, seconds)
        (store / "machine.json").write_text(json.dumps(_machine(setup)))
        importlib.import_module(f"benchmarks.gpu.{name}").run(setup, Results(ResultRows(store)))
    except BaseException:
        (store / "error.txt").write_text(traceback.format_exc())
        traceback.print_exc()
        sys.exit(1)


def _machine(setup: Any) -> dict[str, Any]:
    import torch

    described: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if setup.on_gpu:
        described |= {"gpu": torch.cuda.get_device_name(), "memory_mb": torch.cuda.mem_get_info()[1] / 1e6}
        described["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return described


def _table(sections: dict[str, dict[str, Any]]) -> pd.DataFrame:
    rows = [(name, row) for name, section in sections.items() for row in section["rows"]]
    return pd.DataFrame(
        [(name, row["name"], _value(row), row["unit"], _wanted(row), row["note"]) for name, row in rows],
        columns=["section", "measured", "value (least to most)", "unit", "wanted", "note"],
    )


def _value(row: Row) -> str:
    values: Sequence[float] = row["values"]
    if row["value"] is None:
        return "–"
    if len(values) == 1:
        return f"{row['value']:.3g}"
    return f"{row['value']:.4g} ({min(values):.4g} to {max(values):.4g})"


def _wanted(row: Row) -> str:
    if "tolerance" in row:
        return f"≤ {row['tolerance']:.1e}" + ("" if row["passed"] else " NOT PASSED")
    return f"≥ {row['wanted']:g}" if "wanted" in row else ""


def _wrong(row: Row) -> bool:
    return row.get("passed") is False


if __name__ == "__main__":
    sys.exit(main())
