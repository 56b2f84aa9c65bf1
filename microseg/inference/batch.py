"""Batches: many images segmented in one go, whatever happens on the way.

Reading, the network and writing overlap, with a few images in flight at any time. What counts as done is decided by the
record that each image's outputs end with, so a batch that was killed goes on where it was.

A batch can be done in parts, one after the other or by several processes at once: `plan_batch`, then `segment_part`
for each part, then `finish_batch`. `segment_batch` is the three in one.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.data import image_mpp, read_image
from microseg.errors import DataError, MicrosegError
from microseg.inference.engine import Engine
from microseg.inference.outputs import OUTPUTS, check_outputs, file_sha256, output_names, remove_partial
from microseg.inference.record import Provenance, Record, read_record
from microseg.inference.segmentation import Segmentation
from microseg.inference.tables import BatchSummary, Job, Outcome, finish_batch

__all__ = ["plan_batch", "segment_batch", "segment_file", "segment_part"]

Sizes = float | Mapping[str, float] | None

_READERS, _WRITERS = 2, 2
_AHEAD = 2  # images read, or being read, before the network wants them


@dataclass(frozen=True)
class _Loaded:
    image: npt.NDArray[np.uint8]
    sha256: str
    mpp: float | None


def segment_file(engine: Engine, path: Path, *, provenance: Provenance, mpp: float | None = None) -> Segmentation:
    """Segment one image file.

    Args:
        engine: the network.
        path: of the image.
        provenance: of the network; weights and settings are added from the engine.
        mpp: microns per pixel, where the file does not say or is wrong.

    Returns:
        The segmentation, with probabilities; nothing is written.

    Raises:
        ImageReadError: the file is not a readable image.
        DataError: its pixel size is far from the model's.
    """
    sha256 = file_sha256(path) if path.is_file() else ""  # read_image says what is wrong
    loaded = _Loaded(read_image(path), sha256, _mpp(path, mpp))
    return _segment(engine, path, loaded, _complete(provenance, engine))


def segment_batch(
    engine: Engine,
    images: Sequence[Path],
    out: Path,
    *,
    provenance: Provenance,
    outputs: Collection[str] = OUTPUTS,
    mpp: Sizes = None,
    keep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BatchSummary:
    """Segment images into a folder.

    An image that has its outputs there, of the same file content, model, settings and pixel size, is skipped. An image
    that cannot be read or segmented is passed over and listed in ``failures.csv``.

    Args:
        engine: the network.
        images: paths; doubles count once.
        out: made where missing. It gets each image's outputs, and for the whole batch ``measurements.csv`` (objects),
            ``summary.csv`` (images), ``failures.csv`` and ``batch.json``. One batch at a time writes to a folder.
        provenance: of the network; weights and settings are added from the engine.
        outputs: see `Segmentation.save`.
        mpp: microns per pixel of all images, or of some by file name; None, or not named: what the files say.
        keep: also skip what another model or other settings have made of the same file content.
        progress: called with the number of images finished and of all.

    Returns:
        Counts, times and tables.

    Raises:
        SettingsError: an output is unknown.
        DataError: the outputs would go among the images.
        OSError: the outputs cannot be written: no space, no permission. What is done stays done.
    """
    started = time.perf_counter()
    check_outputs(outputs)
    jobs = plan_batch(images, out)
    outcomes = segment_part(
        engine, jobs, out, provenance=provenance, outputs=outputs, mpp=mpp, keep=keep, progress=progress
    )
    return finish_batch(outcomes, out, outputs=outputs, seconds=time.perf_counter() - started)


def plan_batch(images: Sequence[Path], out: Path) -> tuple[Job, ...]:
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
    return tuple(Job(path, name) for path, name in zip(paths, output_names(paths, out), strict=True))


def segment_part(
    engine: Engine,
    jobs: Sequence[Job],
    out: Path,
    *,
    provenance: Provenance,
    outputs: Collection[str] = OUTPUTS,
    mpp: Sizes = None,
    keep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Outcome, ...]:
    """Segment some images of a batch; nobody else may work on the same ones at this time.

    Args:
        engine: the network.
        jobs: of `plan_batch`.
        out: the batch's folder.
        provenance: of the network; weights and settings are added from the engine.
        outputs: see `Segmentation.save`.
        mpp: see `segment_batch`.
        keep: see `segment_batch`.
        progress: called with the number of images finished and of all of these.

    Returns:
        What became of each, in order.

    Raises:
        SettingsError: an output is unknown.
        OSError: the outputs cannot be written: no space, no permission. What is done stays done.
    """
    check_outputs(outputs)
    remove_partial(out, [job.path for job in jobs])
    batch = _Batch(engine, out, frozenset(outputs), _complete(provenance, engine), mpp, keep)
    outcomes: dict[str, Outcome] = {}
    for outcome in batch.run(jobs):
        outcomes[outcome.job.name] = outcome
        if progress is not None:
            progress(len(outcomes), len(jobs))
    return tuple(outcomes[job.name] for job in jobs)


@dataclass(frozen=True)
class _Batch:
    engine: Engine
    out: Path
    outputs: frozenset[str]
    provenance: Provenance
    mpp: Sizes
    keep: bool

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Outcomes as they come. Leaving early waits for what is being written."""
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(_WRITERS) as writers:
            waiting = iter(jobs)
            reading = deque((job, readers.submit(self.read, job)) for job in islice(waiting, _AHEAD))
            writing: deque[Future[Outcome]] = deque()
            while reading:
                job, future = reading.popleft()
                reading.extend((ahead, readers.submit(self.read, ahead)) for ahead in islice(waiting, 1))
                made = self.predict(job, future)
                if isinstance(made, Outcome):
                    yield made
                    continue
                writing.append(writers.submit(self.write, job, *made))
                if len(writing) > _WRITERS:
                    yield writing.popleft().result()
            for finished in writing:
                yield finished.result()

    def read(self, job: Job) -> _Loaded | Record:
        """The image, or the record of what was made of it before."""
        mpp = _mpp(job.path, self.mpp)
        sha256 = file_sha256(job.path) if job.path.is_file() else ""
        return self.done(job, sha256, mpp) or _Loaded(read_image(job.path), sha256, mpp)

    def done(self, job: Job, sha256: str, mpp: float | None) -> Record | None:
        """The record of the same segmentation, if all its files are there."""
        path = self.out / f"{job.name}.json"
        if not path.is_file():
            return None
        with suppress(DataError):
            record = read_record(path)
            same = (record.source_sha256, record.mpp) == (sha256, mpp)
            same = same and (self.keep or _key(record.provenance) == _key(self.provenance))
            there = all((self.out / file).is_file() for file in record.outputs.values())
            if same and there and self.outputs <= record.outputs.keys():
                return record
        return None

    def predict(
        self, job: Job, future: "Future[_Loaded | Record]"
    ) -> Outcome | tuple[Segmentation, npt.NDArray[np.uint8]]:
        """The segmentation of what was read, and its image; or the outcome, where there is nothing to write."""
        try:
            loaded = future.result()
            if isinstance(loaded, Record):
                return Outcome(job, self.out / f"{job.name}.json", skipped=True)
            return _segment(self.engine, job.path, loaded, self.provenance), loaded.image
        except Exception as error:
            return _failed(job, error)

    def write(self, job: Job, segmentation: Segmentation, image: npt.NDArray[np.uint8]) -> Outcome:
        """Save; an image that cannot be measured fails alone, a folder that cannot be written ends the batch."""
        try:
            files = segmentation.save(self.out, self.outputs, image, job.name)
            return Outcome(job, files["record"])
        except OSError:
            raise
        except Exception as error:
            return _failed(job, error)


def _segment(engine: Engine, path: Path, loaded: _Loaded, provenance: Provenance) -> Segmentation:
    started = time.perf_counter()
    probabilities = engine.probabilities(loaded.image, loaded.mpp)  # (K, H, W)
    return Segmentation(
        mask=probabilities.argmax(axis=0).astype(np.uint8),  # (H, W)
        probabilities=probabilities,
        classes=engine.classes,
        mpp=loaded.mpp,
        provenance=provenance,
        source=str(path),
        source_sha256=loaded.sha256,
        seconds=round(time.perf_counter() - started, 3),
    )


def _complete(provenance: Provenance, engine: Engine) -> Provenance:
    inference = {**provenance.inference, **engine.parameters}
    return provenance.model_copy(update={"weights_sha256": engine.weights_sha256, "inference": inference})


def _key(provenance: Provenance) -> tuple[str, str | None, str]:
    """What has to be equal for a segmentation to be the same."""
    return provenance.model, provenance.weights_sha256, json.dumps(provenance.inference, sort_keys=True)


def _mpp(path: Path, given: Sizes) -> float | None:
    known = given.get(path.name) if isinstance(given, Mapping) else given
    return image_mpp(path) if known is None else known


def _failed(job: Job, error: Exception) -> Outcome:
    reason = " ".join(str(error).split()) or repr(error)
    return Outcome(job, reason=reason if isinstance(error, MicrosegError) else f"{type(error).__name__}: {reason}")
