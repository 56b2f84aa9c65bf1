"""Annotation files of many objects: CPU time and memory to open one, and CPU time to read a region of it.

Nuclei of 20 points on a slide, in one annotated region. A region is 512 pixels wide, at a random place.
"""

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from benchmarks.results import ResultFile, argument_parser
from microseg.annotations.classes import LabelClasses
from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import read_annotation, write_annotation
from microseg.annotations.outlines import Outlines, ellipse

__all__ = ["main"]

_SUFFIXES = {"geojson": ".geojson", "imagescope": ".xml", "asap": ".xml", "coco": ".json", "labelme": ".json"}


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.annotations", __doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 100_000], help="(default: 10000 100000)")
    parser.add_argument("--formats", nargs="+", default=["geojson"], choices=list(_SUFFIXES), help="(default: geojson)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to this file")
    args = parser.parse_args(arguments)
    file = ResultFile(args.json, "benchmarks.annotations", arguments)
    print("format      objects  file MB  open s  region ms  memory MB")
    rows = []
    for name in args.formats:
        for count in args.objects:
            rows.append(row := _measure(name, count))
            print(
                f"{name:10}  {count:7,}  {row['file_mb']:7.0f}  {row['open_s']:6.1f}  {row['region_ms']:9.1f}  "
                f"{row['memory_mb']:9.0f}"
            )
    file.write(rows=rows)


def _measure(name: str, count: int) -> dict[str, Any]:
    side = int(np.ceil(np.sqrt(count)) * 40)
    rng = np.random.default_rng(0)
    centers = rng.uniform(10, side - 10, (count, 1, 2))
    radii = rng.uniform(4, 9, (count, 1, 1))
    polygons = shapely.polygons(centers + radii * ellipse(-1, -1, 1, 1, points=20)[None])
    image = AnnotatedImage("slide.svs", side, side)
    objects = np.array([shapely.box(0, 0, side, side), *polygons])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations" / f"slide{_SUFFIXES[name]}"
        path.parent.mkdir()
        write_annotation(path, Outlines(("Region*", *["nucleus"] * count), objects), image, name)
        del objects, polygons
        start = time.process_time()
        labels = read_annotation(path, image, LabelClasses(("background", "nucleus")))
        opened = time.process_time() - start
        size = path.stat().st_size
    times = []
    for _ in range(50):
        x, y = rng.uniform(0, side - 512, 2).round()
        start = time.process_time()
        labels.read(x, y, 512, 512)
        times.append(time.process_time() - start)
    return {
        "format": name,
        "objects": count,
        "file_mb": size / 1e6,
        "open_s": opened,
        "region_ms": 1e3 * float(np.median(times)),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
