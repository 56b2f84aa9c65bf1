"""Batches: many images segmented in one go, whatever happens on the way.

Reading, the network and writing overlap, with a few images in flight at any time. What counts as done is decided by the
record that each image's outputs end with, so a batch that was killed goes on where it was.
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
from microseg.data.slides import is_slide, open_slide
from microseg.errors import DataError, MicrosegError
from microseg.inference.batch_tables import BatchSummary, Failure, write_tables
from microseg.inference.engine import Engine
from microseg.inference.outputs import OUTPUTS, check_outputs, file_sha256, output_names, remove_partial
from microseg.inference.record import Provenance, Record, read_record
from microseg.inference.segmentation import Segmentation
from microseg.inference.slide import segment_slide

__all__ = ["Batch", "BatchSummary", "Job", "segment_batch", "segment_file"]

Sizes = float | Mapping[str, float] | None

SLIDE_MEGAPIXELS = 16.0
"""Images above this are segmented as slides: as a whole they would take about 60 bytes a pixel."""

_READERS, _WRITERS = 2, 2
_AHEAD = 2  # images read, or being read, before the network wants them


@dataclass(frozen=True)
class Job:
    """One image of a batch.

    Attributes:
        path: of the image.
        name: how the names of its outputs begin.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class _Loaded:
    image: npt.NDArray[np.uint8]
    sha256: str
    mpp: float | None


@dataclass(frozen=True)
class _Streamed:
    """A slide, which is read while it is segmented."""

    sha256: str
    mpp: float | None


@dataclass(frozen=True)
class _Outcome:
    job: Job
    record: Record | None = None
    skipped: bool = False
    reason: str = ""


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
    slide_megapixels: float = SLIDE_MEGAPIXELS,
    skip_glass: bool = True,
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
        outputs: see `Segmentation.save`.
        mpp: microns per pixel of all images, or of some by file name; None, or not named: what the files say.
        slide_megapixels: images above this are segmented as slides, a few rows at a time; see `segment_slide`.
        skip_glass: of slides, leave out tiles of bare glass.
        progress: called with the number of images finished and of all.

    Returns:
        Counts, times and tables.

    Raises:
        SettingsError: an output is unknown.
        DataError: the outputs would go among the images.
        OSError: the outputs cannot be written: no space, no permission. What is done stays done.
    """
    batch = Batch(
        engine,
        images,
        out,
        provenance=provenance,
        outputs=outputs,
        mpp=mpp,
        slide_megapixels=slide_megapixels,
        skip_glass=skip_glass,
    )
    batch.segment(batch.jobs, progress)
    return batch.finish()


class Batch:
    """A batch that is segmented in parts; the arguments are those of `segment_batch`.

    Attributes:
        jobs: its images.
        out: folder of its outputs.
    """

    def __init__(
        self,
        engine: Engine,
        images: Sequence[Path],
        out: Path,
        *,
        provenance: Provenance,
        outputs: Collection[str] = OUTPUTS,
        mpp: Sizes = None,
        slide_megapixels: float = SLIDE_MEGAPIXELS,
        skip_glass: bool = True,
    ) -> None:
        self._started = time.perf_counter()
        check_outputs(outputs)
        out.mkdir(parents=True, exist_ok=True)
        paths = list({path.resolve(): path for path in map(Path, images)}.values())
        if out.resolve() in {path.resolve().parent for path in paths}:
            raise DataError(
                f"Expected a folder of its own for the outputs, got that of the images, {out}: choose another."
            )
        remove_partial(out, paths)
        self.out, self.jobs = out, [Job(path, name) for path, name in zip(paths, output_names(paths, out), strict=True)]
        self.engine, self.outputs, self.mpp = engine, frozenset(outputs), mpp
        self.slide_megapixels, self.skip_glass = slide_megapixels, skip_glass
        for_slides = {"slide_megapixels": slide_megapixels, "skip_glass": skip_glass}
        complete = _complete(provenance, engine)
        self.provenance = complete.model_copy(update={"inference": complete.inference | for_slides})
        self._outcomes: dict[str, _Outcome] = {}

    def chunks(self, size: int) -> Iterator[list[Job]]:
        """The jobs, some at a time."""
        return (self.jobs[start : start + size] for start in range(0, len(self.jobs), size))

    def segment(self, jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None) -> None:
        """Segment some of the jobs; what is done is kept whatever happens to the others.

        Args:
            jobs: of this batch.
            progress: called with the number of images of the batch that are finished, and of all.
        """
        for outcome in self.run(jobs):
            self._outcomes[outcome.job.name] = outcome
            if progress is not None:
                progress(len(self._outcomes), len(self.jobs))

    def finish(self) -> BatchSummary:
        """Write the tables of all that was segmented or skipped."""
        outcomes = [self._outcomes[job.name] for job in self.jobs if job.name in self._outcomes]
        done = [outcome.record for outcome in outcomes if outcome.record is not None]
        now = [outcome.record for outcome in outcomes if outcome.record is not None and not outcome.skipped]
        failures = [Failure(str(outcome.job.path), outcome.reason) for outcome in outcomes if outcome.record is None]
        unsized = 0 if self.engine.mpp is None else sum(record.mpp is None for record in done)
        out = self.out
        summary = BatchSummary(
            images=len(self.jobs),
            done=len(now),
            skipped=len(done) - len(now),
            failed=len(failures),
            unsized=unsized,
            seconds=round(time.perf_counter() - self._started, 3),
            megapixels=sum(record.width * record.height for record in now) / 1e6,
            measurements=out / "measurements.csv" if "objects" in self.outputs else None,
            summary=out / "summary.csv",
            failures=out / "failures.csv",
            record=out / "batch.json",
        )
        write_tables(summary, done, failures, out, self.outputs, self.provenance)
        return summary

    def run(self, jobs: Sequence[Job]) -> Iterator[_Outcome]:
        """Outcomes as they come. Leaving early waits for what is being written."""
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(_WRITERS) as writers:
            waiting = iter(jobs)
            reading = deque((job, readers.submit(self.read, job)) for job in islice(waiting, _AHEAD))
            writing: deque[Future[_Outcome]] = deque()
            while reading:
                job, future = reading.popleft()
                reading.extend((ahead, readers.submit(self.read, ahead)) for ahead in islice(waiting, 1))
                made = self.predict(job, future)
                if isinstance(made, _Outcome):
                    yield made
                    continue
                writing.append(writers.submit(self.write, job, *made))
                if len(writing) > _WRITERS:
                    yield writing.popleft().result()
            for finished in writing:
                yield finished.result()

    def read(self, job: Job) -> _Loaded | _Streamed | Record:
        """The image, or the record of what was made of it before."""
        streamed = is_slide(job.path, megapixels=self.slide_megapixels)
        mpp = _mpp(job.path, self.mpp, streamed=streamed)
        sha256 = file_sha256(job.path) if job.path.is_file() else ""
        if record := self.done(job, sha256, mpp):
            return record
        return _Streamed(sha256, mpp) if streamed else _Loaded(read_image(job.path), sha256, mpp)

    def done(self, job: Job, sha256: str, mpp: float | None) -> Record | None:
        """The record of the same segmentation, if all its files are there."""
        path = self.out / f"{job.name}.json"
        if not path.is_file():
            return None
        with suppress(DataError):
            record = read_record(path)
            same = (record.source_sha256, record.mpp, _key(record.provenance)) == (sha256, mpp, _key(self.provenance))
            there = all((self.out / file).is_file() for file in record.outputs.values())
            if same and there and self.outputs <= record.outputs.keys():
                return record
        return None

    def predict(
        self, job: Job, future: "Future[_Loaded | _Streamed | Record]"
    ) -> _Outcome | tuple[Segmentation, npt.NDArray[np.uint8]]:
        """The segmentation of what was read, and its image; or the outcome, where there is nothing to write."""
        try:
            loaded = future.result()
            if isinstance(loaded, Record):
                return _Outcome(job, loaded, skipped=True)
            if isinstance(loaded, _Streamed):
                return _Outcome(job, self.stream(job, loaded))
            return _segment(self.engine, job.path, loaded, self.provenance), loaded.image
        except _OutputError as error:
            raise error.cause from None
        except Exception as error:
            return _failed(job, error)

    def stream(self, job: Job, slide: _Streamed) -> Record:
        """Segment a slide into its files."""
        try:
            return segment_slide(
                self.engine,
                job.path,
                self.out,
                provenance=self.provenance,
                outputs=self.outputs,
                mpp=slide.mpp,
                skip_glass=self.skip_glass,
                name=job.name,
                sha256=slide.sha256,
            )
        except OSError as error:  # what is wrong with the slide is an ImageReadError
            raise _OutputError(error) from error

    def write(self, job: Job, segmentation: Segmentation, image: npt.NDArray[np.uint8]) -> _Outcome:
        """Save; an image that cannot be measured fails alone, a folder that cannot be written ends the batch."""
        try:
            files = segmentation.save(self.out, self.outputs, image, job.name)
            return _Outcome(job, read_record(files["record"]))
        except OSError:
            raise
        except Exception as error:
            return _failed(job, error)


class _OutputError(Exception):
    """The folder cannot be written to: no image after this one could be kept either."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


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


def _mpp(path: Path, given: Sizes, *, streamed: bool = False) -> float | None:
    known = given.get(path.name) if isinstance(given, Mapping) else given
    if known is not None or not streamed:
        return image_mpp(path) if known is None else known
    with open_slide(path) as slide:
        return slide.mpp


def _failed(job: Job, error: Exception) -> _Outcome:
    reason = " ".join(str(error).split()) or repr(error)
    return _Outcome(job, reason=reason if isinstance(error, MicrosegError) else f"{type(error).__name__}: {reason}")
