"""The images of a part of a batch, on their way: read, segmented, written, with a few in flight at any time."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.errors import DataError, MicrosegError
from microseg.inference.engine import Engine
from microseg.inference.options import BatchOptions, Sizes
from microseg.inference.out_of_distribution import image_ood_score
from microseg.inference.slide import segment_slide
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.files import file_sha256
from microseg.outputs.record import Provenance, Record, read_record
from microseg.outputs.segmentation import Segmentation
from microseg.outputs.tables import ImageResult, ImageTask
from microseg.slides.images import read_image
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import is_slide, open_slide

__all__ = ["Part", "complete_provenance", "segment_one"]

_READERS, _WRITERS = 2, 2
_AHEAD = 1  # images read, or being read, before the network wants them


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


_Made = ImageResult | tuple[Segmentation, npt.NDArray[np.uint8]]


class _Room:
    """Memory for some images at once, or for one slide alone.

    Attributes:
        place: to be held while an image is segmented.
    """

    def __init__(self, places: int) -> None:
        self.place = threading.Semaphore(places)
        self._places, self._slide = places, threading.Lock()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """For a slide: waits until no image holds a place, and takes all."""
        with self._slide, ExitStack() as taken:
            for _ in range(self._places):
                taken.enter_context(self.place)
            yield


@dataclass(frozen=True)
class Part:
    """Some images of a batch; the attributes are the arguments of `segment_images`."""

    engine: Engine
    out: Path
    provenance: Provenance
    options: BatchOptions
    reference: ReferenceDistribution | None = None

    def run(self, jobs: Sequence[ImageTask]) -> Iterator[ImageResult]:
        """Outcomes as they come. Leaving early waits for what is being written."""
        at_once = self.engine.parallel_tiles  # a lane that has no tile of one image left begins with the next one
        room = _Room(at_once)
        with (
            ThreadPoolExecutor(_READERS) as readers,
            ThreadPoolExecutor(at_once) as predictors,
            ThreadPoolExecutor(_WRITERS) as writers,
        ):
            waiting = iter(jobs)

            def begin(job: ImageTask) -> tuple[ImageTask, Future[_Made]]:
                return job, predictors.submit(self.predict, job, readers.submit(self.read, job), room)

            predicting = deque(begin(job) for job in islice(waiting, at_once + _AHEAD))
            writing: deque[Future[ImageResult]] = deque()
            while predicting:
                job, future = predicting.popleft()
                try:
                    made = future.result()
                except _OutputError as error:
                    raise error.cause from None
                predicting.extend(begin(ahead) for ahead in islice(waiting, 1))
                if isinstance(made, ImageResult):
                    yield made
                    continue
                writing.append(writers.submit(self.write, job, *made))
                while writing and (writing[0].done() or len(writing) > _WRITERS):
                    yield writing.popleft().result()
            for finished in writing:
                yield finished.result()

    def read(self, job: ImageTask) -> _Loaded | _Streamed | Record:
        """The image, or the record of what was made of it before."""
        streamed = is_slide(job.path, megapixels=self.options.slide_megapixels)
        mpp = _mpp(job.path, self.options.mpp, streamed=streamed)
        sha256 = file_sha256(job.path) if job.path.is_file() else ""
        if record := self.done(job, sha256, mpp):
            return record
        return _Streamed(sha256, mpp) if streamed else _Loaded(read_image(job.path), sha256, mpp)

    def done(self, job: ImageTask, sha256: str, mpp: float | None) -> Record | None:
        """The record of the same segmentation, if all its files are there."""
        path = self.out / f"{job.name}.json"
        if not path.is_file():
            return None
        with suppress(DataError):
            record = read_record(path)
            same = (record.source_sha256, record.mpp) == (sha256, mpp)
            same = same and (self.options.keep or _key(record.provenance) == _key(self.provenance))
            there = all((self.out / file).is_file() for file in record.outputs.values())
            if same and there and set(self.options.outputs) <= record.outputs.keys():
                return record
        return None

    def predict(self, job: ImageTask, future: "Future[_Loaded | _Streamed | Record]", room: _Room) -> _Made:
        """The segmentation of what was read, and its image; or the outcome, where there is nothing to write."""
        try:
            loaded = future.result()
            if isinstance(loaded, Record):
                return self.outcome(job, self.out / f"{job.name}.json", loaded.mpp, skipped=True)
            if isinstance(loaded, _Streamed):
                with room.whole():
                    return self.stream(job, loaded)
            with room.place:
                return _segment(self.engine, job.path, loaded, self.provenance, self.reference), loaded.image
        except _OutputError:
            raise
        except Exception as error:
            return _failed(job, error)

    def stream(self, job: ImageTask, slide: _Streamed) -> ImageResult:
        """Segment a slide into its files."""
        try:
            segment_slide(
                self.engine,
                job.path,
                self.out,
                provenance=self.provenance,
                outputs=self.options.outputs,
                mpp=slide.mpp,
                skip_glass=self.options.skip_glass,
                name=job.name,
                sha256=slide.sha256,
                reference=self.reference,
            )
        except OSError as error:  # what is wrong with the slide is an ImageReadError
            raise _OutputError(error) from error
        return self.outcome(job, self.out / f"{job.name}.json", slide.mpp)

    def write(self, job: ImageTask, segmentation: Segmentation, image: npt.NDArray[np.uint8]) -> ImageResult:
        """Save; an image that cannot be measured fails alone, a folder that cannot be written ends the batch."""
        try:
            files = segmentation.save(self.out, self.options.outputs, image, job.name)
            return self.outcome(job, files["record"], segmentation.mpp)
        except OSError:
            raise
        except Exception as error:
            return _failed(job, error)

    def outcome(self, job: ImageTask, record: Path, mpp: float | None, *, skipped: bool = False) -> ImageResult:
        """Of an image that has its outputs."""
        return ImageResult(job, record, skipped=skipped, missing_pixel_size=mpp is None and self.engine.mpp is not None)


class _OutputError(Exception):
    """The folder cannot be written to: no image after this one could be kept either."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def segment_one(
    engine: Engine,
    path: Path,
    provenance: Provenance,
    mpp: float | None,
    reference: ReferenceDistribution | None = None,
) -> Segmentation:
    """Read and segment one image that is no slide; the arguments are those of `segment_file`."""
    sha256 = file_sha256(path) if path.is_file() else ""  # read_image says what is wrong
    return _segment(engine, path, _Loaded(read_image(path), sha256, _mpp(path, mpp)), provenance, reference)


def _segment(
    engine: Engine, path: Path, loaded: _Loaded, provenance: Provenance, reference: ReferenceDistribution | None
) -> Segmentation:
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
        ood_score=image_ood_score(reference, loaded.image, engine.zoom(loaded.mpp)),
    )


def complete_provenance(provenance: Provenance, engine: Engine) -> Provenance:
    """With the weights and settings of an engine."""
    inference = {**provenance.inference, **engine.parameters}
    return provenance.model_copy(update={"weights_sha256": engine.weights_sha256, "inference": inference})


def _key(provenance: Provenance) -> tuple[str, str | None, str]:
    """What has to be equal for a segmentation to be the same."""
    return provenance.model, provenance.weights_sha256, json.dumps(provenance.inference, sort_keys=True)


def _mpp(path: Path, given: Sizes, *, streamed: bool = False) -> float | None:
    reference = given.get(path.name) if isinstance(given, Mapping) else given
    if reference is not None or not streamed:
        return image_mpp(path) if reference is None else reference
    with open_slide(path) as slide:
        return slide.mpp


def _failed(job: ImageTask, error: Exception) -> ImageResult:
    reason = " ".join(str(error).split()) or repr(error)
    return ImageResult(job, reason=reason if isinstance(error, MicrosegError) else f"{type(error).__name__}: {reason}")
