"""Memory and time of the objects of a slide, from a made label image without a network.

    python -m benchmarks.objects.memory --kinds empty dots net --sizes 4000 8000 --json memory.json

``dots`` has an object for each 10 × 10 pixels (1,000,000 of 10,000 × 10,000), ``net`` one that hangs together over the
whole slide, ``sponge`` few large ones of irregular shape, ``touching`` nuclei that touch and are separated. Each is
written with all outputs of objects, in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from scipy import ndimage

from benchmarks.results import ResultFile, Row, argument_parser, console_table
from microseg.models.separation import Separation
from microseg.outputs.record import ImageInfo, Provenance
from microseg.outputs.segmentation_writer import SegmentationWriter
from microseg.outputs.writers import MaskStrip

__all__ = ["main"]

KINDS = ("empty", "dots", "net", "sponge", "touching")
_OUTPUTS = ("labels", "instances", "outlines", "objects")
_STRIP = 448  # rows, as of a row of tiles
_SPONGE = 2048  # pixels after which the pattern is repeated


def main(arguments: list[str] | None = None) -> None:
    """Run each kind and size in its own process, and print and write the table."""
    parser = argument_parser("benchmarks.objects.memory", __doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4000, 8000], help="side of the slide in pixels")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        sys.stdout.write(json.dumps(_measure(chosen.one[0], int(chosen.one[1]))))
        return
    file, rows = ResultFile(chosen.json, "benchmarks.objects.memory", arguments), list[Row]()
    for kind in chosen.kinds:
        for size in chosen.sizes:
            command = [sys.executable, "-m", "benchmarks.objects.memory", "--one", kind, str(size)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            columns = list(rows[0])
            cells = [[f"{row[name]:,}" if name != "slide" else row[name] for name in columns] for row in rows]
            file.write(tables={"memory": {"columns": columns, "rows": cells}})
    Console().print(console_table(pd.DataFrame(rows), "Objects of slides"))


def _measure(kind: str, side: int) -> Row:
    image = ImageInfo(
        name="slide", source="slide.tif", source_sha256=None, width=side, height=side, mpp=0.5,
        classes=("background", "nucleus"), provenance=Provenance(model="made"),
        instances=("nucleus",) if kind == "touching" else (),
    )  # fmt: skip
    separation = Separation((1,), 1.0, 10.0) if kind == "touching" else None
    before, started = _peak(), time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        SegmentationWriter(Path(folder), image, _OUTPUTS, _no_picture, slide=True, separation=separation) as writer,
    ):
        for strip in _strips(kind, side):
            writer.add(strip)
        record = writer.finish(None, seconds=None)
    return {
        "slide": kind,
        "megapixels": round(side * side / 1e6),
        "objects": record.summary["objects_nucleus"],
        "peak memory, MB": _peak(),
        "of these before the first strip": before,
        "CPU s": round(time.process_time() - started),
    }


def _strips(kind: str, side: int) -> Iterator[MaskStrip]:
    y, x = np.mgrid[:_STRIP, :side]
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((_STRIP, _SPONGE)), 3, mode="wrap")
    sponge = np.tile(noise > np.quantile(noise, 0.45), (1, -(-side // _SPONGE)))[:, :side]
    for top in range(0, side, _STRIP):
        interior: npt.NDArray[np.uint8] | None = None
        mask = np.zeros((_STRIP, side), np.uint8)
        if kind == "dots":
            mask = (np.hypot((y + top) % 10 - 4.5, x % 10 - 4.5) < 4).astype(np.uint8)
        elif kind == "net":
            mask = (((y + top) % 16 < 3) | (x % 16 < 3)).astype(np.uint8)
        elif kind == "sponge":
            mask = sponge.astype(np.uint8)
        elif kind == "touching":
            mask = np.ones((_STRIP, side), np.uint8)
            depth = 1 - np.hypot((y + top) % 16 - 7.5, x % 16 - 7.5) / 11
            interior = (255 * depth.clip(0, 1)).astype(np.uint8)
        rows = min(_STRIP, side - top)
        yield MaskStrip(
            top,
            mask[:rows],
            np.full((rows, side), 200, np.uint8),
            interior=None if interior is None else interior[:rows],
        )


def _no_picture(_longest: int) -> npt.NDArray[np.uint8]:
    return np.full((64, 64, 3), 255, np.uint8)


def _peak() -> int:
    """Peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
