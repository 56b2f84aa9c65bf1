"""Batches: many images segmented in one go, whatever happens on the way.

Reading, the network and writing overlap, with a few images in flight at any time. What counts as done is decided by the
record that each image's outputs end with, so a batch that was killed goes on where it was.

A batch can be done in parts, one after the other or by several processes at once: `plan_batch`, then `segment_images`
for each part, then `finish_batch`. `segment_batch` is the three in one.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from microseg.config.params import OutOfDistributionSettings
from microseg.errors import DataError
from microseg.inference.engine import Engine
from microseg.inference.image_pipeline import Part, complete_provenance, segment_one
from microseg.inference.options import BatchOptions
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.files import output_names, remove_partial
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.outputs.tables import BatchSummary, ImageResult, ImageTask, finish_batch

__all__ = ["plan_batch", "segment_batch", "segment_file", "segment_images"]

_USUAL = BatchOptions()


def segment_file(
    engine: Engine,
    path: Path,
    *,
    provenance: Provenance,
    mpp: float | None = None,
    reference: ReferenceDistribution | None = None,
) -> Segmentation:
    """Segment one image file.

    Args:
        engine: the network.
        path: of the image.
        provenance: of the network; weights and settings are added from the engine.
        mpp: microns per pixel, where the file does not say or is wrong.
        reference: what the network knows, to tell the image's drift.

    Returns:
        The segmentation, with probabilities; nothing is written.

    Raises:
        ImageReadError: the file is not a readable image.
        DataError: its pixel size is far from the model's.
    """
    return segment_one(engine, path, complete_provenance(provenance, engine), mpp, reference)


def segment_batch(
    engine: Engine,
    images: Sequence[Path],
    out: Path,
    *,
    provenance: Provenance,
    options: BatchOptions = _USUAL,
    reference: ReferenceDistribution | None = None,
    ood_score: OutOfDistributionSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BatchSummary:
    """Segment images into a folder.

    An image that has its outputs there, of the same file content, model, settings and pixel size, is skipped. An image
    that cannot be read or segmented is passed over and listed in ``failures.csv``.

    Args:
        engine: the network.
        images: paths; doubles count once.
        out: made where missing. It gets each image's outputs, and for the whole batch ``measurements.csv`` (objects)
            and ``summary.csv`` (images), both also as ``.parquet``, ``failures.csv`` and ``batch.json``. One batch at a
            time writes to a folder.
        provenance: of the network; weights and settings are added from the engine.
        options: what is asked for.
        reference: what the network knows, to tell how far the images lie from that; None: it is not told.
        ood_score: see `finish_batch`.
        progress: called with the number of images finished and of all.

    Returns:
        Counts, times and tables.

    Raises:
        DataError: the outputs would go among the images.
        OSError: the outputs cannot be written: no space, no permission. What is done stays done.
    """
    started = time.perf_counter()
    jobs = plan_batch(images, out)
    outcomes = segment_images(
        engine, jobs, out, provenance=provenance, options=options, reference=reference, progress=progress
    )
    seconds = time.perf_counter() - started
    return finish_batch(outcomes, out, outputs=options.outputs, seconds=seconds, ood_score=ood_score)


def plan_batch(images: Sequence[Path], out: Path) -> tuple[ImageTask, ...]:
    """Give each image of a batch the name of its outputs.

    Args:
        images: paths; doubles count once.
        out: made where missing.

    Raises:
        DataError: the outputs would go among the images.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = list({path.resolve(): path for path in map(Path, images)}.values())
    if out.resolve() in {path.resolve().parent for path in paths}:
        raise DataError(f"Expected a folder of its own for the outputs, got that of the images, {out}: choose another.")
    return tuple(ImageTask(path, name) for path, name in zip(paths, output_names(paths, out), strict=True))


def segment_images(
    engine: Engine,
    jobs: Sequence[ImageTask],
    out: Path,
    *,
    provenance: Provenance,
    options: BatchOptions = _USUAL,
    reference: ReferenceDistribution | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageResult, ...]:
    """Segment some images of a batch; nobody else may work on the same ones at this time.

    Args:
        engine: the network.
        jobs: of `plan_batch`.
        out: the batch's folder.
        provenance: of the network; weights and settings are added from the engine.
        options: of the batch.
        reference: see `segment_batch`.
        progress: called with the number of images finished and of all of these.

    Returns:
        What became of each, in order.

    Raises:
        OSError: the outputs cannot be written: no space, no permission. What is done stays done.
    """
    remove_partial(out, [job.path for job in jobs])
    complete = complete_provenance(provenance, engine)
    for_slides = {"slide_megapixels": options.slide_megapixels, "skip_glass": options.skip_glass}
    complete = complete.model_copy(update={"inference": complete.inference | for_slides})
    outcomes: dict[str, ImageResult] = {}
    for outcome in Part(engine, out, complete, options, reference).run(jobs):
        outcomes[outcome.job.name] = outcome
        if progress is not None:
            progress(len(outcomes), len(jobs))
    return tuple(outcomes[job.name] for job in jobs)
