"""Throughput of segmentation from file to files, compared with the bare network and with a loop in MONAI.

Three measurements with the same network and images, in separate processes, alternating in each run:
  raw     the forward pass only, without folded batch normalization, on the engine's tiles as floats; batches of 4
  engine  read, segment, write labels, outlines, overlay, table, record, as `microseg segment`, after a warm-up with
          all images
  monai   read, `sliding_window_inference` (512 px, overlap 0.25, Gaussian, 4 windows), argmax, write labels: a
          typical user's script, without microseg's process settings
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import ResultFile, argument_parser

__all__ = ["main"]

_SIDE, _IMAGES = 1000, 12
_SLIDES = (1024, 2048, 3072)  # sides, in pixels
_EPILOG = """\
Megapixels are those of the images, without the overlap of tiles; ratios are computed for each run.
MONAI is required: pip install --no-deps monai. Other load on the machine affects all values: compare the spread.

Example: python -m benchmarks.throughput --runs 5 --json throughput.json
         python -m benchmarks.throughput --slide 20000 --tissue 0.3 --json slide.json    (one slide: time and memory)
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.throughput", __doc__, _EPILOG)
    parser.add_argument("--runs", type=int, default=3, help="number of runs (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values to this file")
    parser.add_argument(
        "--slide", type=int, metavar="SIDE", help="measure one square slide of this side in pixels instead"
    )
    parser.add_argument(
        "--tissue", type=float, default=0.3, help="fraction of that slide that is tissue (default: 0.3)"
    )
    parser.add_argument(
        "--encoder", default="tf_efficientnet_lite0", help="encoder of the generated network (default: %(default)s)"
    )
    parser.add_argument(
        "--network", type=Path, metavar="FOLDER", help="folder of a trained network; by default one is generated"
    )
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    file = ResultFile(chosen.json, "benchmarks.throughput", arguments)
    if chosen.measure:
        side, folder, *rest = chosen.measure
        print(json.dumps(_SIDES[side](Path(folder), *rest)))
        return
    with tempfile.TemporaryDirectory(prefix="microseg-throughput-") as name:
        folder = Path(name)
        if chosen.network:
            shutil.copytree(chosen.network, folder / "network")
        _in_process("prepare", folder, chosen.encoder)
        values = _one_slide(folder, chosen.slide, chosen.tissue) if chosen.slide else _sides(folder, chosen.runs)
    file.write(**values)


def _sides(folder: Path, runs: int) -> dict[str, Any]:
    measured: list[dict[str, float]] = []
    for run in range(1, runs + 1):
        print(f"run {run} of {runs} ...", file=sys.stderr, flush=True)
        measured.append({**_in_process("engine", folder), **_in_process("monai", folder)})
    growth = _in_process("growth", folder)
    columns = {key: [one[key] for one in measured] for key in measured[0]}
    columns["engine_over_raw"] = [one["engine_mp_s"] / one["raw_forward_mp_s"] for one in measured]
    columns["engine_over_monai"] = [one["engine_mp_s"] / one["monai_mp_s"] for one in measured]
    middle = {key: statistics.median(values) for key, values in columns.items()}
    names = ("raw_forward_mp_s", "engine_mp_s", "engine_over_raw", "monai_mp_s", "engine_over_monai")
    roofline = ("flop_per_megapixel", "achieved_gflop_s", "matmul_peak_gflop_s", "share_of_peak")
    print(f"{_IMAGES} images of {_SIDE} x {_SIDE}, {os.cpu_count()} cores; median (least to most) of {runs} runs")
    for key in (*names, "peak_rss_mb", "monai_peak_rss_mb", *roofline):
        low, high = min(columns[key]), max(columns[key])
        print(f"{key:22}{middle[key]:12.4g}  ({low:.4g} to {high:.4g})")
    print("seconds of a slide by megapixels: ", ", ".join(f"{mp}: {s:.1f}" for mp, s in growth.items()))
    values: dict[str, Any] = {key: round(middle[key], 4) for key in (*names, "peak_rss_mb")}
    return values | {
        "seconds_by_megapixels": growth,
        "monai_peak_rss_mb": middle["monai_peak_rss_mb"],
        **{key: middle[key] for key in roofline},
        "runs": measured,
        "cores": os.cpu_count(),
    }


def _one_slide(folder: Path, side: int, tissue: float) -> dict[str, Any]:
    _in_process("prepare-slide", folder, str(side), str(tissue))
    values = _in_process("slide", folder, str(side), str(tissue))
    for key, value in values.items():
        print(f"{key:22}{value:12.4g}")
    row = [f"{side:,} × {side:,} pixels, {tissue} of it tissue"]
    row += [f"{values[key]:.0f}" for key in ("seconds", "cpu_seconds", "peak_rss_mb", "peak_mb_with_children")]
    columns = ["slide", "seconds", "CPU seconds", "peak memory, MB", "the same with child processes, MB"]
    return {**values, "tables": {"slide": {"columns": columns, "rows": [row]}}}


def _in_process(side: str, folder: Path, *rest: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", "--measure", side, str(folder), *rest],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def _prepare(folder: Path, encoder: str) -> dict[str, float]:
    from benchmarks.workload import make_images, make_network

    if not (folder / "network").exists():
        make_network(folder / "network", encoder=encoder)
    make_images(folder / "images", count=_IMAGES, side=_SIDE)
    return {}


def _engine(folder: Path) -> dict[str, float]:
    """The engine and the bare network, alternating, in one process."""
    import numpy as np
    import torch

    from microseg.inference.batch import segment_batch
    from microseg.inference.engine import Engine
    from microseg.inference.tiling import cut_tile
    from microseg.models.files import load_network
    from microseg.outputs.record import Provenance
    from microseg.slides.images import read_image

    network = load_network(folder / "network").eval()
    engine = Engine(network)
    paths = sorted((folder / "images").iterdir())
    megapixels = _megapixels()

    def whole(images: list[Path]) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            summary = segment_batch(engine, images, Path(out), provenance=Provenance(model="benchmark"))
            assert summary.done == len(images)

    batches: list[torch.Tensor] = []

    @torch.inference_mode()
    def raw() -> None:
        for batch in batches:
            network(batch)

    whole(paths)  # from the 32nd tile on the network is traced
    seconds: dict[str, list[float]] = {"engine": [_seconds(lambda: whole(paths))], "raw": []}
    peak = _peak_rss()  # of the engine alone
    tiles = [cut_tile(image, tile) for image in map(read_image, paths) for tile in engine.plan(*image.shape[:2])]
    batches += [
        torch.from_numpy(np.stack(tiles[at : at + 4])).permute(0, 3, 1, 2).float().div(255)
        for at in range(0, len(tiles), 4)
    ]
    with torch.inference_mode():
        network(batches[0])
    seconds["raw"].append(_seconds(raw))
    seconds["engine"].append(_seconds(lambda: whole(paths)))
    seconds["raw"].append(_seconds(raw))
    flop = _flop(network, batches[0][:1]) * len(tiles)
    mean = {side: statistics.mean(values) for side, values in seconds.items()}
    matmul = _matmul_peak()
    return {
        "engine_mp_s": megapixels / mean["engine"],
        "raw_forward_mp_s": megapixels / mean["raw"],
        "peak_rss_mb": peak,
        "flop_per_megapixel": flop / megapixels,
        "achieved_gflop_s": flop / mean["engine"] / 1e9,
        "matmul_peak_gflop_s": matmul,
        "share_of_peak": flop / mean["engine"] / 1e9 / matmul,
    }


def _monai(folder: Path) -> dict[str, float]:
    """A user's script: PyTorch is imported first, so that microseg's process settings have no effect."""
    import numpy as np
    import tifffile
    import torch
    from monai.inferers.utils import sliding_window_inference
    from PIL import Image

    from microseg.models.files import load_network

    network = load_network(folder / "network").eval()
    out = folder / "monai"
    out.mkdir(exist_ok=True)

    def segment(path: Path) -> None:
        image = np.asarray(Image.open(path).convert("RGB"))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            logits: Any = sliding_window_inference(x, (512, 512), 4, network, overlap=0.25, mode="gaussian")
        tifffile.imwrite(out / path.name, logits.argmax(1)[0].byte().numpy(), compression="zlib")

    paths = sorted((folder / "images").iterdir())
    segment(paths[0])

    def whole() -> None:
        for path in paths:
            segment(path)

    seconds = _seconds(whole)
    return {"monai_mp_s": _megapixels() / seconds, "monai_peak_rss_mb": _peak_rss()}


def _growth(folder: Path) -> dict[str, float]:
    from benchmarks.workload import make_slide

    seconds = {}
    for side in _SLIDES:
        path = folder / f"slide{side}.tif"
        make_slide(path, side=side)
        seconds[f"{side * side / 1e6:.1f}"] = round(_segment_slide(folder, path), 2)
    return seconds


def _prepare_slide(folder: Path, side: str, tissue: str) -> dict[str, float]:
    from benchmarks.workload import make_slide

    make_slide(folder / "slide.tif", side=int(side), tissue=float(tissue))
    return {}


def _slide(folder: Path, side: str, tissue: str) -> dict[str, float]:
    from benchmarks.processes import cpu_seconds, tree_memory

    before = cpu_seconds()
    with tree_memory() as peak:
        seconds = _segment_slide(folder, folder / "slide.tif")
    cpu = cpu_seconds() - before
    return {
        "megapixels": int(side) ** 2 / 1e6,
        "tissue": float(tissue),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_rss_mb": _peak_rss(),
        "peak_mb_with_children": peak[0],
    }


def _segment_slide(folder: Path, path: Path) -> float:
    from microseg.inference.engine import Engine
    from microseg.inference.slide import segment_slide
    from microseg.models.files import load_network
    from microseg.outputs.record import Provenance

    engine = Engine(load_network(folder / "network"))
    out = folder / "slides"
    return _seconds(lambda: segment_slide(engine, path, out, provenance=Provenance(model="benchmark")))


def _flop(network: Any, tile: Any) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(tile)
    return int(counter.get_total_flops())


def _matmul_peak() -> float:
    """GFLOP/s of the fastest of several multiplications of 2048 x 2048 floats."""
    import torch

    side = 2048
    a, b = torch.rand(side, side), torch.rand(side, side)
    return 2 * side**3 / min(_seconds(lambda: a @ b) for _ in range(6)) / 1e9


def _megapixels() -> float:
    return _IMAGES * _SIDE**2 / 1e6


def _peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def _seconds(task: Any) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


_SIDES: Mapping[str, Any] = {
    "prepare": _prepare,
    "prepare-slide": _prepare_slide,
    "engine": _engine,
    "monai": _monai,
    "growth": _growth,
    "slide": _slide,
}


if __name__ == "__main__":
    main()
