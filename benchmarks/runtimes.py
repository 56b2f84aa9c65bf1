"""Time per tile of the engine, ONNX Runtime and OpenVINO, in one process.

  engine                   microseg's engine (PyTorch), after a warm-up
  onnxruntime, openvino    the exported ONNX graph: tiles in parallel x threads per tile; or as OpenVINO's hints for
                           latency and for throughput choose them
All compute in 32 bits, on the same tiles, from pixels to probabilities, with the same number of threads. They alternate
so that other load on the machine affects all of them; ratios are computed for each turn.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.results import ResultFile, argument_parser, spread

if TYPE_CHECKING:
    from microseg.models.network import PyramidSegmenter

__all__ = ["main"]

Tiles = Sequence[npt.NDArray[np.uint8]]
Compute = Callable[[Tiles], list[npt.NDArray[np.float32]]]

_NEEDED = ("onnxruntime", "onnxscript", "openvino")
_BASE = "engine"
_WARM = 40  # tiles after which the engine has traced its network
_EPILOG = """\
A ratio of 2 means half the time of the engine. "ready" is the time of preparation before the first tile.
Other load on the machine affects all values: compare the spread.

Example: python -m benchmarks.runtimes --json runtimes.json
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.runtimes", __doc__, _EPILOG)
    parser.add_argument("--turns", type=int, default=7, help="number of turns (default: 7)")
    parser.add_argument("--tiles", type=int, default=4, help="tiles of one turn (default: 4)")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile in pixels (default: 512)")
    parser.add_argument("--threads", type=int, help="number of threads; by default as many as PyTorch uses")
    parser.add_argument(
        "--encoder", default="tf_efficientnet_lite0", help="encoder of the generated network (default: %(default)s)"
    )
    parser.add_argument(
        "--network", type=Path, metavar="FOLDER", help="folder of a trained network; by default one is generated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values to this file")
    chosen = parser.parse_args(arguments)
    file = ResultFile(chosen.json, "benchmarks.runtimes", arguments)
    for name in ("turns", "tiles"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(chosen, name)}")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise SystemExit(f"Expected {', '.join(missing)}, not installed: pip install 'microseg[onnx]' openvino")
    with tempfile.TemporaryDirectory(prefix="microseg-runtimes-") as folder:
        values = _measure(Path(folder), chosen)
    _print_table(values)
    file.write(**values)


def _measure(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.workload import load_or_make_network, make_images
    from microseg.slides.images import read_image

    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    network = load_or_make_network(chosen.network, folder / "network", encoder=chosen.encoder)
    tiles = [read_image(path) for path in make_images(folder / "images", count=chosen.tiles, side=chosen.tile)]
    ready: dict[str, float] = {}
    sides: dict[str, Compute] = {}
    for name, make in _sides(network, folder, chosen.tile, torch.get_num_threads()).items():
        began = time.perf_counter()
        sides[name] = make()
        ready[name] = time.perf_counter() - began
    expected = np.stack(sides[_BASE](tiles))  # (N, K, T, T)
    difference = {name: float(np.abs(np.stack(side(tiles)) - expected).max()) for name, side in sides.items()}
    for _ in range(0, _WARM, len(tiles)):
        sides[_BASE](tiles)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(chosen.turns):
        for name, side in sides.items():
            began = time.perf_counter()
            side(tiles)
            seconds[name].append((time.perf_counter() - began) / len(tiles))
    return {
        "tile": chosen.tile,
        "tiles": chosen.tiles,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "encoder": network.config.encoder,
        "seconds": seconds,
        "ratio": {
            name: [base / own for base, own in zip(seconds[_BASE], taken, strict=True)]
            for name, taken in seconds.items()
        },
        "difference": difference,
        "ready": ready,
    }


def _sides(network: "PyramidSegmenter", folder: Path, tile: int, threads: int) -> dict[str, Callable[[], Compute]]:
    """Functions that prepare each side."""
    from microseg.inference.engine import Engine
    from microseg.models.export.formats import export_model

    def engine() -> Compute:
        made = Engine(network, tile=tile, halo=0, batch=threads)  # the tiles are whole images
        return lambda tiles: [outputs.cpu().numpy() for outputs in made.tile_outputs(tiles)]

    graph = export_model(network, folder / "network.onnx", kind="onnx", tile=tile).path
    sides: dict[str, Callable[[], Compute]] = {_BASE: engine}
    for parallel_tiles in dict.fromkeys((threads, 1)):
        shape = f"{parallel_tiles} x {threads // parallel_tiles}"
        sides[f"onnxruntime, {shape}"] = partial(_onnxruntime, graph, parallel_tiles, threads // parallel_tiles)
        sides[f"openvino, {shape}"] = partial(_openvino, graph, tile, threads, {"NUM_STREAMS": parallel_tiles})
    for hint in ("LATENCY", "THROUGHPUT"):
        sides[f"openvino, {hint.lower()}"] = partial(_openvino, graph, tile, threads, {"PERFORMANCE_HINT": hint})
    return sides


def _onnxruntime(graph: Path, parallel_tiles: int, threads: int) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return _in_parallel(parallel_tiles, lambda x: session.run(None, {"image": x})[0])


def _openvino(graph: Path, tile: int, threads: int, options: Mapping[str, Any]) -> Compute:
    import openvino

    core = openvino.Core()
    model = core.read_model(graph)
    model.reshape([1, 3, tile, tile])
    common = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", {**common, **options})
    parallel_tiles = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    return _in_parallel(parallel_tiles, lambda x: compiled.create_infer_request().infer({0: x})[0])


def _in_parallel(parallel_tiles: int, run: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> Compute:
    """Compute tiles in parallel, one per call."""
    pool = ThreadPoolExecutor(parallel_tiles)

    def one(tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        pixels = np.ascontiguousarray(tile.transpose(2, 0, 1)[None], np.float32) / np.float32(255)  # (1, 3, T, T)
        probabilities: npt.NDArray[np.float32] = run(pixels)[0]  # (K, T, T)
        return probabilities

    return lambda tiles: list(pool.map(one, tiles))


def _print_table(values: Mapping[str, Any]) -> None:
    print(
        f"{values['encoder']}, tiles of {values['tile']} x {values['tile']}, {values['threads']} threads; "
        f"median (least to most) of {len(values['seconds'][_BASE])} turns of {values['tiles']} tiles\n"
    )
    print("| computed by | ms a tile | engine's time / its | probabilities differ by | ready, s |")
    print("| --- | --- | --- | --- | --- |")
    for name, seconds in values["seconds"].items():
        milliseconds = spread([1000 * value for value in seconds], 0)
        ratio = spread(values["ratio"][name], 2)
        print(f"| {name} | {milliseconds} | {ratio} | {values['difference'][name]:.0e} | {values['ready'][name]:.1f} |")


if __name__ == "__main__":
    main()
