"""Inference on a device: the bare forward pass, the engine in memory, from files to files, and MONAI's sliding window.

Megapixels are those of the images, without the overlap of tiles. The bare forward pass is the network alone on batches
that are already on the device, in the precision of the engine, at the best of several tile and batch sizes: nothing
that computes an image with this network can be faster.
"""

import itertools
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from benchmarks.gpu.data import MPP, image_links, network, slide_file
from benchmarks.gpu.measure import BusyShare, Results, Setup, busy_in_profile, peak_memory, repeat, timed
from benchmarks.processes import cpu_seconds
from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine
from microseg.inference.image_pipeline import BatchOptions
from microseg.models.network import PyramidSegmenter
from microseg.outputs.files import OUTPUTS
from microseg.outputs.record import Provenance
from microseg.slides.images import read_image
from microseg.threads import results_in_order

__all__ = ["run"]

_MM2 = MPP**2  # square millimeters of a megapixel
_BARE = ((1024, 8), (2048, 4))  # tile and batch
_AHEAD = 64  # images in flight in memory
_WANTED_LABELS, _WANTED_ALL = 600, 200  # megapixels a second on one H100 with 16 cores


def run(setup: Setup, results: Results) -> None:
    """Measure all ways, each in its share of the section's time; one that fails does not keep the others from running.

    Raises:
        ExceptionGroup: The errors.
    """
    model = network(setup)
    share = setup.seconds / 12
    engine = Engine(model, device=setup.device)
    steps: dict[str, Callable[[], None]] = {
        "bare": lambda: _bare(setup, results, model, 2 * share),
        "labels": lambda: _from_files(setup, results, engine, "labels", ("labels",), 2 * share),
        "all outputs": lambda: _from_files(setup, results, engine, "all outputs", OUTPUTS, 2 * share),
        "slide": lambda: _from_slide(setup, results, engine, 2 * share),
        "memory": lambda: _in_memory(setup, results, engine, 1.5 * share),
        "reading": lambda: _reading(setup, results, 0.5 * share),
        "monai": lambda: _monai(setup, results, model, 2 * share),
    }
    errors = []
    for name, step in steps.items():
        try:
            step()
        except Exception as error:
            results.skip(name, f"{type(error).__name__}: {error}"[:300])
            errors.append(error)
    _shares(results)
    if errors:
        raise ExceptionGroup("measurements that failed", errors)


def _bare(setup: Setup, results: Results, model: PyramidSegmenter, seconds: float) -> None:
    dtype = torch.float16 if setup.on_gpu else torch.float32
    bare = model.to(device=setup.device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sizes = [(64, 1)] if setup.quick else _BARE
    tried, before = [], torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        for tile, batch in sizes:
            x = torch.rand(batch, 3, tile, tile, device=setup.device, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), peak_memory(setup) as memory:
                timed(lambda x=x: bare(x), setup)  # type: ignore[misc]  # cuDNN tries its algorithms
                some = repeat(lambda x=x: [bare(x) for _ in range(3)], setup, seconds=seconds / len(sizes) / 2)  # type: ignore[misc]
            rates = [3 * batch * tile**2 / 1e6 / one for one in some]
            tried.append((sorted(rates)[len(rates) // 2], tile, batch, rates, memory.get("device", math.nan)))
            results.add(f"bare forward pass, batch of {batch} of {tile}²", rates, "MP/s")
            del x
    finally:
        torch.backends.cudnn.benchmark = before
        model.to(device="cpu", dtype=torch.float32)
    _best, tile, batch, rates, device_memory = max(tried)
    precision = str(dtype).removeprefix("torch.")
    results.add("bare forward pass", rates, "MP/s", f"{precision}, best of {len(sizes)}: batch of {batch} of {tile}²")
    if setup.on_gpu:
        results.add("bare forward pass, peak memory on the device", device_memory, "MB", "of that batch")


def _in_memory(setup: Setup, results: Results, engine: Engine, seconds: float) -> None:
    """Images as arrays to masks as arrays."""
    kinds = [read_image(path) for path in sorted((setup.folder / "images").iterdir())]
    size = kinds[0].shape[0] * kinds[0].shape[1] / 1e6

    def segment(count: int) -> None:
        for _ in results_in_order(engine.submit, itertools.islice(itertools.cycle(kinds), count), _AHEAD - 1):
            pass

    count = _count(lambda it: timed(lambda: segment(it), setup), seconds / 4, setup)
    with peak_memory(setup) as memory, BusyShare(setup) as busy:
        rates = [count * size / one for one in repeat(lambda: segment(count), setup, seconds=seconds, most=5)]
    results.add("engine in memory", rates, "MP/s", f"{count} images of {kinds[0].shape[0]}²")
    _describe(results, "engine in memory", busy.share, memory)
    if setup.on_gpu:
        share = busy_in_profile(lambda: segment(min(count, 128)), setup)
        results.add("engine in memory, GPU busy in a profile", math.nan if share is None else share, "share")


def _from_files(
    setup: Setup, results: Results, engine: Engine, name: str, outputs: Collection[str], seconds: float
) -> None:
    size = np.prod(read_image(next((setup.folder / "images").iterdir())).shape[:2]) / 1e6
    options = BatchOptions(outputs=outputs)

    def segment(count: int) -> tuple[float, float]:
        """Seconds, and seconds of CPU time."""
        out = setup.folder / "out"
        images, before = image_links(setup, count), cpu_seconds()
        took = timed(
            lambda: _complete(
                segment_batch(engine, images, out, provenance=Provenance(model="benchmark"), options=options), count
            ),
            setup,
        )
        used = cpu_seconds() - before
        shutil.rmtree(out)
        return took, used

    count = _count(lambda it: segment(it)[0], seconds / 3, setup)
    with peak_memory(setup) as memory, BusyShare(setup) as busy:
        measured = [segment(count) for _ in range(1 if setup.quick else 3)]
    title = f"files to {name}"
    results.add(
        title,
        [count * size / one for one, _ in measured],
        "MP/s",
        f"{count} images, zlib TIFF in the page cache",
        wanted=_WANTED_LABELS if name == "labels" else _WANTED_ALL,
    )
    results.add(f"{title}, area", [count * size * _MM2 / one for one, _ in measured], "mm²/s", f"at {MPP} µm")
    results.add(f"{title}, CPU time", [used / (count * size) for _, used in measured], "core-s/MP")
    _describe(results, title, busy.share, memory)


def _complete(summary: Any, count: int) -> None:
    if summary.done != count:
        raise AssertionError(f"expected {count} segmented images, got {summary}")


def _from_slide(setup: Setup, results: Results, engine: Engine, seconds: float) -> None:
    """One slide, tissue everywhere, to labels and to all outputs."""
    with tifffile.TiffFile(slide_file(setup)) as tiff:
        megapixels = np.prod(tiff.pages[0].shape[:2]) / 1e6
    for name, outputs in (("labels", ("labels",)), ("all outputs", OUTPUTS)):
        options = BatchOptions(outputs=outputs, slide_megapixels=0.1)
        out = setup.folder / "slides"

        def segment(out: Path = out, options: BatchOptions = options) -> None:
            provenance = Provenance(model="benchmark")
            _complete(segment_batch(engine, [slide_file(setup)], out, provenance=provenance, options=options), 1)

        with peak_memory(setup) as memory, BusyShare(setup) as busy:
            took: list[float] = []
            while len(took) < 2 or (sum(took) < seconds / 2 and len(took) < 4):
                took.append(timed(segment, setup))
                shutil.rmtree(out)
        title = f"slide to {name}"
        first, took = took[0], took[1:]  # the first starts reading processes, and cuDNN plans for sizes of tiles
        results.add(f"{title}, first run", megapixels / first, "MP/s")
        results.add(title, [megapixels / one for one in took], "MP/s", f"{megapixels:.0f} megapixels, zlib TIFF")
        results.add(f"{title}, area", [megapixels * _MM2 / one for one in took], "mm²/s", f"at {MPP} µm")
        _describe(results, title, busy.share, memory)


def _reading(setup: Setup, results: Results, seconds: float) -> None:
    """Decoding of the same files by as many threads as there are cores: an upper limit of everything from files."""
    paths = sorted((setup.folder / "images").iterdir()) * (1 if setup.quick else 8)
    with ThreadPoolExecutor(cpu_count()) as pool:

        def read() -> int:
            return sum(image.shape[0] * image.shape[1] for image in pool.map(read_image, paths))

        megapixels = read() / 1e6
        rates = [megapixels / one for one in repeat(read, setup, seconds=seconds, least=1)]
    results.add("reading of the files alone", rates, "MP/s", f"{cpu_count()} threads")


def _monai(setup: Setup, results: Results, model: PyramidSegmenter, seconds: float) -> None:
    """A user's script with `sliding_window_inference`, in 16 bits on a GPU, the images one after the other."""
    try:
        from monai.inferers.utils import sliding_window_inference
    except ImportError as error:
        results.skip("MONAI", str(error))
        return
    model = model.to(device=setup.device, dtype=torch.float32)
    kinds = sorted((setup.folder / "images").iterdir())
    pixels = [read_image(path) for path in kinds]
    size = pixels[0].shape[0] * pixels[0].shape[1] / 1e6
    window, batch = ((128, 128), 2) if setup.quick else ((512, 512), 16)

    def predict(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        x = torch.from_numpy(np.array(image)).to(setup.device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode(), torch.autocast(setup.device.type, torch.float16, enabled=setup.on_gpu):
            logits: Any = sliding_window_inference(x, window, batch, model, overlap=0.25, mode="gaussian")
        mask: npt.NDArray[np.uint8] = logits.argmax(1)[0].byte().cpu().numpy()
        return mask

    out = setup.folder / "monai"
    out.mkdir(exist_ok=True)

    def to_files(paths: Sequence[Path]) -> None:
        for path in paths:
            tifffile.imwrite(out / path.name, predict(read_image(path)), compression="zlib")

    predict(pixels[0])
    rates = [
        len(pixels) * size / one
        for one in repeat(lambda: [predict(image) for image in pixels], setup, seconds=seconds / 2, least=1)
    ]
    note = f"windows of {window[0]}², {batch} at once, overlap 0.25, Gaussian"
    results.add("MONAI in memory", rates, "MP/s", note)
    rates = [len(kinds) * size / one for one in repeat(lambda: to_files(kinds), setup, seconds=seconds / 2, least=1)]
    results.add("MONAI, files to labels", rates, "MP/s", note)


def _shares(results: Results) -> None:
    """Ratios to the bare forward pass and to MONAI, of medians."""
    for name, base in (
        ("engine in memory", "bare forward pass"),
        ("files to labels", "bare forward pass"),
        ("files to all outputs", "bare forward pass"),
        ("slide to labels", "bare forward pass"),
        ("engine in memory", "MONAI in memory"),
        ("files to labels", "MONAI, files to labels"),
    ):
        try:
            results.add(f"{name} / {base}", results[name] / results[base], "ratio")
        except StopIteration:
            results.skip(f"{name} / {base}", "one of the two was not measured")


def _describe(results: Results, title: str, busy: float | None, memory: dict[str, float]) -> None:
    if busy is not None:
        results.add(f"{title}, GPU busy", busy, "share", "as the driver states it, start and end included")
    if "device" in memory:
        results.add(f"{title}, peak memory on the device", memory["device"], "MB", "reserved by PyTorch")
    results.add(f"{title}, peak memory of the process", memory["process"], "MB", "the largest of this section so far")


def _count(seconds_of: Callable[[int], float], seconds: float, setup: Setup) -> int:
    """Number of images that take about that many seconds."""
    if setup.quick:
        return 2
    seconds_of(192)  # starts all processes, and warms up
    rate = 64 / seconds_of(64)
    return int(min(4096, max(64, rate * seconds)))
