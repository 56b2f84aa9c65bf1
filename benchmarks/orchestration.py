"""Overhead of orchestration: a batch by the flow, compared with the engine on the same images.

    python -m benchmarks.orchestration
    python -m benchmarks.orchestration --images 60 --pairs 2      # short

Both read the same images and write the same files, alternating. The flow uses a real Prefect server and registry, looks
up the production version for each chunk, and creates tables and pictures in Prefect. Other load on the machine
affects both; compare the spread.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.results import argument_parser


def main() -> None:
    arguments = argument_parser("benchmarks.orchestration", __doc__)
    arguments.add_argument("--images", type=int, default=500)
    arguments.add_argument("--size", type=int, default=256, help="side of an image, pixels")
    arguments.add_argument("--pairs", type=int, default=3, help="number of repetitions")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"MICROSEG_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)
        ratios = measure(home, given.images, given.size, given.pairs)
    quotients = [flow / bare for bare, flow in ratios]
    print(
        f"\n{given.images} images of {given.size} px: the flow takes {statistics.median(quotients):.3f} times as long "
        f"as the engine (median; {min(quotients):.3f} to {max(quotients):.3f})."
    )


def measure(home: Path, images: int, size: int, pairs: int) -> list[tuple[float, float]]:
    """Seconds of the engine and of the flow, for each pair."""
    # these read the environment when they are imported
    from prefect.testing.utilities import prefect_test_harness

    from benchmarks.workload import make_different_images, promote_network
    from flows.segment import segment
    from flows.workspace import open_workspace
    from microseg.config.settings import load_settings
    from microseg.inference.batch import segment_batch
    from microseg.inference.image_pipeline import BatchOptions

    settings = load_settings()
    folder = home / "images"
    make_different_images(folder, count=images, side=size)
    registry = open_workspace(settings).registry
    version = promote_network(registry, home / "network", encoder=settings.params.network.encoder)
    paths, taken = sorted(folder.iterdir()), []
    print("| pair | engine, s | flow, s | flow / engine |\n| --- | --- | --- | --- |")
    with prefect_test_harness(server_startup_timeout=180):
        for number in range(-1, pairs):  # the first pair warms both up
            few = paths[:20] if number < 0 else paths
            began = time.perf_counter()
            segmenter = open_workspace(settings).segmenter(version)
            options = BatchOptions(outputs=settings.params.inference.outputs)
            segment_batch(
                segmenter.engine, few, home / f"engine-{number}", provenance=segmenter.provenance, options=options
            )
            middle = time.perf_counter()
            if number < 0:
                continue
            segment(folder, out=home / f"flow-{number}")
            bare, flow = middle - began, time.perf_counter() - middle
            taken.append((bare, flow))
            print(f"| {len(taken)} | {bare:.1f} | {flow:.1f} | {flow / bare:.3f} |", flush=True)
    return taken


if __name__ == "__main__":
    main()
