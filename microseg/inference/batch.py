"""Batches: many images segmented into one folder.

An image whose record exists is done, so an interrupted batch continues where it stopped. A batch can be processed in
chunks, one after the other or by several processes at once: `plan_batch`, then `segment_images` for each chunk, then
`finish_batch`. `segment_batch` does all three.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from microseg.errors import DataError
from microseg.inference.engine import Engine
from microseg.inference.image_pipeline import BatchOptions, ImagePipeline
from microseg.inference.single_image import complete_provenance
from microseg.locks import exclusive
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.batch_summary import BatchSummary, ImageResult, ImageTask, finish_batch
from microseg.outputs.files import output_names, remove_partial
from microseg.outputs.record import Provenance
from microseg.slides.channels import check_read_options

__all__ = ["batch_lock", "plan_batch", "segment_batch", "segment_images"]


def segment_batch(
    engine: Engine,
    images: Sequence[Path],
    out: Path,
    *,
    provenance: Provenance,
    options: BatchOptions | None = None,
    reference: ReferenceDistribution | None = None,
    progress: Callable[[], None] = lambda: None,
) -> BatchSummary:
    """Segment images into a folder.

    An image is skipped if its outputs exist, of the same file content, model, settings and pixel size. An image that
    cannot be read or segmented is listed in ``failures.csv``.

    Args:
        engine: The network.
        images: Paths; duplicates count once.
        out: Folder of the outputs; created if missing. It gets the outputs of each image, and for the whole batch
            ``measurements.csv`` (objects) and ``summary.csv`` (images), both also as ``.parquet``, ``failures.csv``
            and ``batch.json``.
        provenance: Model and data; weights and settings are added from the engine.
        options: Options of the batch; None for the defaults.
        reference: Reference distribution of the model; None: no out-of-distribution scores.
        progress: Called after each image.

    Returns:
        Counts, times and tables.

    Raises:
        DataError: The folder of the outputs is that of the images, or their channels are not those of the network.
        LockedError: Another batch is writing to the folder.
        OSError: The outputs cannot be written: no space, no permission. Finished outputs are kept.
    """
    started, options = time.perf_counter(), options or BatchOptions()
    with batch_lock(images, out):
        tasks = plan_batch(images, out)
        results = segment_images(
            engine, tasks, out, provenance=provenance, options=options, reference=reference, progress=progress
        )
        return finish_batch(results, out, outputs=options.outputs, seconds=time.perf_counter() - started)


@contextmanager
def batch_lock(images: Sequence[Path], out: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Lock a folder of outputs for one batch, and remove the temporary files that a killed one left there.

    Args:
        images: Paths of the batch.
        out: The folder; created if missing.
        waiting: Called with a message that names the other batch, before this waits for it; None: do not wait.

    Raises:
        DataError: The folder of the outputs is that of the images.
        LockedError: Another batch is writing there, and ``waiting`` is None.
    """
    if out.resolve() in {path.resolve().parent for path in map(Path, images)}:
        raise DataError(f"Expected an output folder other than that of the images, got {out}: choose another.")
    with exclusive(out / ".batch.lock", f"the outputs in {out}", waiting=waiting):
        for left in out.glob(".*.part"):
            left.unlink(missing_ok=True)
        yield


def plan_batch(images: Sequence[Path], out: Path) -> tuple[ImageTask, ...]:
    """Assign names of outputs to the images of a batch, after removing what a killed one left of them.

    No other process may work on these images at the same time, see `batch_lock`.

    Args:
        images: Paths; duplicates count once.
        out: Folder of the outputs; created if missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = list({path.absolute(): path for path in map(Path, images)}.values())  # two links are two images
    remove_partial(out, paths)  # before the names: files already moved into place would be taken for another image's
    return tuple(ImageTask(path, name) for path, name in zip(paths, output_names(paths, out), strict=True))


def segment_images(
    engine: Engine,
    tasks: Sequence[ImageTask],
    out: Path,
    *,
    provenance: Provenance,
    options: BatchOptions | None = None,
    reference: ReferenceDistribution | None = None,
    progress: Callable[[], None] = lambda: None,
) -> tuple[ImageResult, ...]:
    """Segment some images of a batch; no other process may work on the same images at the same time.

    ``tasks`` come from `plan_batch`; the other arguments, and the errors, are those of `segment_batch`.

    Returns:
        The result of each image, in order.
    """
    options = options or BatchOptions()
    check_read_options(engine.inputs, options.reading)
    remove_partial(out, [task.path for task in tasks])
    complete = complete_provenance(provenance, engine)
    reading: dict[str, float] = {"slide_megapixels": options.slide_megapixels, "skip_glass": options.skip_glass}
    complete = complete.model_copy(update={"inference": complete.inference | reading | options.reading.to_record()})
    results: dict[str, ImageResult] = {}
    for result in ImagePipeline(engine, out, complete, options, reference).run(tasks):
        results[result.task.name] = result
        progress()
    return tuple(results[task.name] for task in tasks)
