"""Cost of reading an image in a child process, which bounds its time and memory, compared with reading it here.

In each round every file is read once in each way, one after the other, so that other load concerns both. Times are
those of the clock: the processor time of both processes is in them, and the copy of the pixels between them.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from benchmarks.results import argument_parser, spread
from microseg.slides import images, limited

__all__ = ["main"]

_SIDES = (256, 1024, 4096)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(
        "benchmarks.reading",
        "Measures reading images in a child process, compared with reading them in this one.",
        "Example: python -m benchmarks.reading --rounds 11",
    )
    parser.add_argument("--rounds", type=int, default=11, help="readings of each file in each way (default: 11)")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {chosen.rounds}")
    print("| file | in this process, ms | in a child process, ms | median ratio |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="microseg-reading-") as folder:
        for path in _files(Path(folder)):
            limited.read_image(path)
            here, child = list[float](), list[float]()
            for _ in range(chosen.rounds):
                for seconds, read in ((here, images.read_image), (child, limited.read_image)):
                    started = time.perf_counter()
                    read(path)
                    seconds.append(1000 * (time.perf_counter() - started))
            ratio = float(np.median(child) / np.median(here))
            print(f"| {path.name} | {spread(here, 1)} | {spread(child, 1)} | {ratio:.2f} |")


def _files(folder: Path) -> list[Path]:
    """Images like those of tissue: smooth, with noise."""
    random, paths = np.random.default_rng(0), list[Path]()
    for side in _SIDES:
        waves = 128 + 60 * np.sin(np.arange(side)[:, None] / 20) * np.cos(np.arange(side) / 30)
        pixels = (waves[..., None] + random.integers(0, 20, (side, side, 3))).astype(np.uint8)
        paths += [folder / f"{side}.png", folder / f"{side}.jpg", folder / f"{side}.tif"]
        for path in paths[-3:-1]:
            Image.fromarray(pixels).save(path)
        tifffile.imwrite(paths[-1], pixels, photometric="rgb", tile=(256, 256), compression="deflate")
    return paths


if __name__ == "__main__":
    main()
