"""Two workers against one, each with one thread: how much more two of them do in the same time.

    python -m benchmarks.distributed

Two measurements, with one worker and with two, alternating:
  segment  images a second of the flow: in its process, and with two Dask workers. The time of a batch and of one three
           times as large is subtracted, so that the start of the workers does not count
  train    crops a second of a training in one process, and of one that two share (torch.distributed, gloo), after the
           first steps
Two is the most; other load on the machine affects the ratio in both directions: compare the spread.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before they are read
    os.environ[_name] = "1"

from benchmarks.results import ResultFile, argument_parser, spread  # noqa: E402

__all__ = ["main"]

_WARM_UP = 5  # steps


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.distributed", __doc__)
    parser.add_argument("--images", type=int, default=60, help="images of 256 px of the smaller batch (default: 60)")
    parser.add_argument("--steps", type=int, default=40, help="training steps (default: 40)")
    parser.add_argument("--pairs", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--only", nargs="+", choices=("segment", "train"), default=["train", "segment"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values to this file")
    chosen = parser.parse_args(arguments)
    file = ResultFile(chosen.json, "benchmarks.distributed", arguments)
    measured: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="microseg-distributed-") as name:
        home = Path(name)
        os.environ |= {"MICROSEG_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "MICROSEG_DEVICE": "cpu"}
        for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MICROSEG_PARAMS"):
            os.environ.pop(variable, None)
        if "train" in chosen.only:
            measured["train"] = _train(home, chosen.steps, chosen.pairs)
        if "segment" in chosen.only:
            measured["segment"] = _segment(home, chosen.images, chosen.pairs)
    print("| | one worker, items/s | two workers, items/s | two / one |\n| --- | --- | --- | --- |")
    for part, rates in measured.items():
        one, two = zip(*rates, strict=True)
        ratios = [b / a for a, b in rates]
        print(f"| {part} | {spread(one, 2)} | {spread(two, 2)} | {spread(ratios, 2)} |")
        print(f"{part}: {statistics.median(ratios):.2f} times as much with two workers", file=sys.stderr)
    file.write(**measured)


def _train(home: Path, steps: int, pairs: int) -> list[list[float]]:
    """Crops a second of one process and of two, for each pair."""
    from microseg.api.training import train
    from microseg.config.training_params import NetworkSettings, TrainSettings
    from microseg.datasets.ingest import ingest_lab
    from microseg.synthetic.labs import LAB_A, generate_lab
    from microseg.training.devices import Progress, make_fabric

    incoming = generate_lab(home / "incoming", LAB_A, images=16, size=256, labelled=True, seed=0)
    lab = ingest_lab(incoming, home / "labs", home / "quarantine").folder
    settings = TrainSettings(steps=steps, evaluate_every=10**6, checkpoint_every=10**6, workers=0)

    def rate(processes: int, folder: Path) -> float:
        times: list[float] = []

        def note(step: int, _losses: Mapping[str, float]) -> None:
            if step >= _WARM_UP:
                times.append(time.perf_counter())

        fabric = make_fabric("cpu", devices=processes)
        network = NetworkSettings(weights=None)
        train([lab], network, settings, folder=folder, fabric=fabric, progress=Progress(on_step=note))
        return settings.batch_size * (len(times) - 1) / (times[-1] - times[0])

    return [[rate(count, home / f"network-{pair}-{count}") for count in (1, 2)] for pair in range(pairs)]


def _segment(home: Path, images: int, pairs: int) -> list[list[float]]:
    """Images a second of the flow with one worker and with two, for each pair."""
    # these read the environment when they are imported
    from prefect.testing.utilities import prefect_test_harness

    from benchmarks.workload import make_different_images, promote_network
    from flows.segment import segment
    from flows.workspace import open_workspace
    from microseg.config.settings import load_settings

    settings = load_settings()
    folders = {count: home / f"images-{count}" for count in (images, 3 * images)}
    for count, folder in folders.items():
        make_different_images(folder, count=count, side=256)
    promote_network(open_workspace(settings).registry, home / "network", encoder=settings.params.network.encoder)

    def seconds(workers: int, count: int, out: Path) -> float:
        began = time.perf_counter()
        changes = (f"inference.workers={workers}", f"inference.chunk_size={max(1, images // 6)}")
        summary = segment(folders[count], out=out, changes=changes)
        if summary.done != count:
            raise AssertionError(f"expected {count} segmented images, got {summary}")
        return time.perf_counter() - began

    def rate(workers: int, pair: int) -> float:
        small, large = (seconds(workers, it, home / f"out-{pair}-{workers}-{it}") for it in folders)
        return 2 * images / (large - small)

    with prefect_test_harness(server_startup_timeout=300):
        return [[rate(workers, pair) for workers in (1, 2)] for pair in range(pairs)]


if __name__ == "__main__":
    main()
