"""Cost of large labs, batches and registries as the work grows, on a CPU, in one table.

    python -m benchmarks.scaling                                  # 100 and 1,000; minutes
    python -m benchmarks.scaling --sizes 100 1000 10000           # an hour on two cores

Each number is measured in a process of its own, once:
  ingest   images of 64 px with masks: check and add them to a lab
  version  commit the lab's dataset to DVC, and push it to a folder
  arrival  ten more images of that lab: ingest, then version
  segment  images of 64 px by a small network, all outputs, tables
  tables   tables and page of a batch whose images are segmented already
  adapt    preparation of an adaptation to the lab, and three steps
  status   `microseg status` with that many registered versions, of ten labs
CPU time counts that of all processes, and depends less on what else the machine does. The milliseconds for each item
tell how the cost grows: constant, it is proportional; falling, there is a fixed cost.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from benchmarks.processes import cpu_seconds
from benchmarks.results import ResultRows, Row, argument_parser, console_table, markdown_table
from microseg.api.training import adapt
from microseg.config.training_params import AdaptSettings, ArchitectureSettings
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.lab import LabMetadata, write_lab_metadata
from microseg.datasets.versions.store import DatasetStore
from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine
from microseg.models.files import save_network
from microseg.models.network import PyramidSegmenter, configure_network
from microseg.outputs.batch_summary import BatchSummary
from microseg.outputs.record import Provenance
from microseg.registry.version import MODEL_NAME
from microseg.report.batch_page import write_batch_page
from microseg.slides.images import write_png
from microseg.synthetic.labs import LAB_A, generate_image, generate_lab

__all__ = ["main"]

_SIDE = 64
_ARRIVAL = 10
_NEW = 10**6  # numbers of the images that arrive later
_LABS = 10

Cost = tuple[float, float]
"""Seconds, and seconds of CPU time."""
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "version": ("ingest",),
    "arrival": ("ingest", "version"),
    "tables": ("segment",),
    "adapt": ("ingest",),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.scaling", __doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000], help="default: 100 1000")
    parser.add_argument("--only", nargs="+", choices=list(_PARTS), default=list(_PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/scaling"), help="folder of results.json")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        part, size, folder = chosen.measure
        measured = _PARTS[part](int(size), Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux
        print(json.dumps({"costs": measured, "peak_mb": peak}))
        return
    stored = ResultRows(chosen.out)
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory(prefix="microseg-scaling-") as folder:
            for part in _PARTS:
                if part in chosen.only or any(part in _NEEDS.get(other, ()) for other in chosen.only):
                    _measure(part, size, Path(folder), stored, keep=part in chosen.only)
    table = _table(stored.rows)
    Console().print(console_table(table, "Cost as work grows"))
    (chosen.out / "table.md").write_text(markdown_table(table))


def _measure(part: str, size: int, folder: Path, stored: ResultRows, *, keep: bool) -> None:
    command = [sys.executable, "-m", "benchmarks.scaling", "--measure", part, str(size), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{part} of {size}: {found}", file=sys.stderr, flush=True)
    for name, (seconds, cpu) in found["costs"].items() if keep else ():
        stored.add({"part": name, "items": size, "seconds": seconds, "cpu": cpu, "peak_mb": found["peak_mb"]})


def _table(rows: list[Row]) -> pd.DataFrame:
    lines = [
        (
            row["part"],
            row["items"],
            f"{row['seconds']:.2f}",
            f"{row['cpu']:.2f}",
            f"{1000 * row['cpu'] / row['items']:.3g}",
            f"{row['peak_mb']:.0f}",
        )
        for row in rows
    ]
    columns = ["part", "items", "seconds", "CPU seconds", "CPU ms for each", "peak MB of the process"]
    return pd.DataFrame(lines, columns=columns)


def _cost(task: Callable[[], Any]) -> Cost:
    """Seconds, and CPU time of this process and of all that it started."""
    began, before = time.perf_counter(), cpu_seconds()
    task()
    return time.perf_counter() - began, cpu_seconds() - before


def _images(folder: Path, numbers: range, *, labelled: bool) -> None:
    """Write images of which each differs from all others in a few pixels, as PNG."""
    (folder / "images").mkdir(parents=True)
    if labelled:
        (folder / "masks").mkdir()
    kinds = [generate_image(LAB_A, _SIDE, 1.0, seed) for seed in range(8)]
    for number in numbers:
        image, mask = kinds[number % len(kinds)]
        image = image.copy()
        image[0, :4, 0] = [number >> shift & 255 for shift in (0, 8, 16, 24)]
        write_png(folder / "images" / f"{number:07d}.png", image)
        if labelled:
            write_png(folder / "masks" / f"{number:07d}.png", mask)


def _incoming(folder: Path, numbers: range) -> Path:
    _images(folder, numbers, labelled=True)
    metadata = LabMetadata(lab="big", stain="H&E", classes=LAB_A.classes, mpp=1.0, tissue="colon", labelled=True)
    write_lab_metadata(folder, metadata)
    return folder


def _ingest(size: int, folder: Path) -> dict[str, Cost]:
    incoming = _incoming(folder / "incoming", range(size))
    return {"ingest": _cost(lambda: ingest_lab(incoming, folder / "data" / "labs", folder / "quarantine"))}


def _store(folder: Path) -> DatasetStore:
    return DatasetStore(folder / "data", None)


def _version(_size: int, folder: Path) -> dict[str, Cost]:
    store = _store(folder)
    return {
        "version": _cost(lambda: store.commit("big")),
        "version, nothing new": _cost(lambda: store.commit("big")),
    }


def _arrival(_size: int, folder: Path) -> dict[str, Cost]:
    incoming, store = _incoming(folder / "later", range(_NEW, _NEW + _ARRIVAL)), _store(folder)
    ingest = _cost(lambda: ingest_lab(incoming, folder / "data" / "labs", folder / "quarantine"))
    return {"ingest of ten more": ingest, "version of ten more": _cost(lambda: store.commit("big"))}


def _engine() -> Engine:
    torch.manual_seed(0)
    architecture = ArchitectureSettings(encoder="blocks", channels=(8, 16), pyramid_bins=(1, 2), pyramid_channels=8)
    network = PyramidSegmenter(configure_network(architecture, LAB_A.classes, 1.0)).eval()
    return Engine(network)


def _segment(size: int, folder: Path) -> dict[str, Cost]:
    _images(folder / "batch", range(size), labelled=False)
    paths, engine = sorted((folder / "batch" / "images").iterdir()), _engine()
    provenance = Provenance(model="benchmark")
    return {"segment": _cost(lambda: segment_batch(engine, paths, folder / "out", provenance=provenance))}


def _tables(_size: int, folder: Path) -> dict[str, Cost]:
    paths, engine, out = sorted((folder / "batch" / "images").iterdir()), _engine(), folder / "out"
    provenance = Provenance(model="benchmark")
    summaries: list[BatchSummary] = []
    again = _cost(lambda: summaries.append(segment_batch(engine, paths, out, provenance=provenance)))
    summary = summaries[0]
    if summary.skipped != len(paths):
        raise AssertionError(f"expected {len(paths)} images that are segmented already, got {summary}")
    before = set(out.rglob("*.html"))
    page = _cost(lambda: write_batch_page(summary))
    pages = set(out.rglob("*.html")) - before
    print(f"{len(pages)} pages, largest {max(it.stat().st_size for it in pages) / 1e6:.2f} MB", file=sys.stderr)
    return {"same batch again: tables": again, "page of the batch": page}


def _adapt(_size: int, folder: Path) -> dict[str, Cost]:
    incoming = generate_lab(folder / "source", LAB_A, images=8, size=_SIDE, labelled=True, seed=3)
    source = open_lab_dataset(ingest_lab(incoming, folder / "sources", folder / "quarantine").folder)
    target = open_lab_dataset(folder / "data" / "labs" / "big")
    torch.manual_seed(0)
    architecture = ArchitectureSettings(encoder="blocks", channels=(8, 16), pyramid_bins=(1, 2), pyramid_channels=8)
    network = PyramidSegmenter(configure_network(architecture, LAB_A.classes, 1.0)).eval()
    settings = AdaptSettings(steps=3, crop_size=_SIDE, pseudo_label_rounds=1, target_label_share=0)
    return {"adapt": _cost(lambda: adapt(network, [source], [target], settings, folder=folder / "adapted"))}


def _status(size: int, folder: Path) -> dict[str, Cost]:
    os.environ["MICROSEG_HOME"] = str(folder / "home")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MICROSEG_PARAMS"):
        os.environ.pop(name, None)
    from flows.health.status import read_status
    from flows.workspace import open_workspace
    from microseg.config.settings import load_settings

    settings = load_settings()
    settings.home.create()
    workspace = open_workspace(settings)
    _fill_registry(workspace.registry, size, folder)
    read = _cost(lambda: read_status(settings))
    command = [sys.executable, "-m", "flows.cli.main", "status"]
    whole = _cost(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    return {"status, in a process": read, "microseg status": whole}


def _fill_registry(registry: Any, size: int, folder: Path) -> None:
    """Register one version, and repeat its entry for ten labs."""
    torch.manual_seed(0)
    architecture = ArchitectureSettings(encoder="blocks", channels=(8, 16), pyramid_bins=(1, 2), pyramid_channels=8)
    save_network(folder / "network", PyramidSegmenter(configure_network(architecture, LAB_A.classes, 1.0)).eval())
    example = generate_image(LAB_A, _SIDE, 1.0, 0)[0]
    with registry.runs.start("benchmark") as run:
        options = {"example": example, "method": "supervised", "description": "Benchmark."}
        first = registry.versions.register(run, folder / "network", **options)
    registry.production.promote(first)
    client = registry.versions._connection.client
    entry = client.get_model_version(MODEL_NAME, str(first.version))
    for number in range(1, size):
        tags = {**entry.tags, "target": f"lab_{number % _LABS}", "method": "dual_adaptive_pyramid"}
        client.create_model_version(MODEL_NAME, source=entry.source, run_id=entry.run_id, tags=tags)


_PARTS: Mapping[str, Callable[[int, Path], dict[str, Cost]]] = {
    "ingest": _ingest,
    "version": _version,
    "arrival": _arrival,
    "segment": _segment,
    "tables": _tables,
    "adapt": _adapt,
    "status": _status,
}


if __name__ == "__main__":
    main()
