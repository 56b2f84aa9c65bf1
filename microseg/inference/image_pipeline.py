"""The image pipeline: images are read, segmented and written at the same time, a few of them at any moment."""

import json
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.config.params import InferenceSettings
from microseg.errors import DataError, MicrosegError
from microseg.inference.engine import Engine
from microseg.inference.out_of_distribution import image_ood_score
from microseg.inference.slide import segment_slide
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.batch_summary import ImageResult, ImageTask
from microseg.outputs.files import OUTPUTS
from microseg.outputs.record import Provenance, Record, read_record
from microseg.outputs.segmentation import Segmentation
from microseg.outputs.stains import Stains
from microseg.outputs.writers import load_writers
from microseg.slides.identity import KnownHashes, source_sha256
from microseg.slides.limited import image_mpp, is_slide, open_slide, read_image
from microseg.slides.pixel_size import StatedMpp, agreed_mpp

__all__ = ["BatchOptions", "ImagePipeline", "PixelSizes", "complete_provenance", "segment_file", "segment_pixels"]

_READERS, _WRITERS = 2, 2  # threads
_HASHES_FILE = ".image-identities"  # in the folder of the outputs
_AHEAD = 1  # images that are read before the network can take them

PixelSizes = float | Mapping[str, float | StatedMpp] | None
"""Microns per pixel of all images, or of some by file name; None, or a name that is missing: as the files state. Where
a file states another one, the image fails, unless `StatedMpp.overrides`."""


@dataclass(frozen=True)
class BatchOptions:
    """Options of a batch, the same for all its images.

    Attributes:
        outputs: Names of output writers.
        mpp: See `PixelSizes`.
        slide_megapixels: Images above this size are segmented as slides, strip by strip; see `segment_slide`.
        skip_glass: Do not compute tiles of a slide that show bare glass.
        keep_existing: Skip images whose outputs exist, though another model or other settings made them.
        bit_depth: Bits that hold the values of images of 16 bits, see `read_image`; None: measured in each image.
        stains: Stains that are measured in objects; see `KNOWN_STAINS`.

    Raises:
        SettingsError: An output or a stain is unknown.
        PluginError: An output writer cannot be imported.
    """

    outputs: Collection[str] = OUTPUTS
    mpp: PixelSizes = None
    slide_megapixels: float = InferenceSettings().slide_megapixels
    skip_glass: bool = True
    keep_existing: bool = False
    bit_depth: int | None = None
    stains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        load_writers(self.outputs)
        if self.stains:
            Stains.named(self.stains, ring=1)  # raises an error if one is unknown


@dataclass(frozen=True)
class _Source:
    """An image file that has to be segmented; without pixels it is a slide, which is read while it is segmented."""

    sha256: str
    mpp: float | None
    pixels: npt.NDArray[np.uint8] | None


class _MemoryBudget:
    """Memory for some images at once, or for one slide alone.

    Attributes:
        image: Semaphore to hold while an image is segmented.
    """

    def __init__(self, images: int) -> None:
        self.image = threading.Semaphore(images)
        self._images, self._slide = images, threading.Lock()

    @contextmanager
    def slide(self) -> Iterator[None]:
        """Wait until no image is being segmented, and reserve the whole budget for a slide."""
        with self._slide, ExitStack() as reserved:
            for _ in range(self._images):
                reserved.enter_context(self.image)
            yield


@dataclass(frozen=True)
class ImagePipeline:
    """Segments images into files; the attributes are the arguments of `segment_images`."""

    engine: Engine
    out: Path
    provenance: Provenance
    options: BatchOptions
    reference: ReferenceDistribution | None = None

    @cached_property
    def _hashes(self) -> KnownHashes:
        return KnownHashes(self.out / _HASHES_FILE)

    def run(self, tasks: Sequence[ImageTask]) -> Iterator[ImageResult]:
        """Yield results in order. Closing the iterator early waits for files that are being written."""
        try:
            yield from self._run(tasks)
        finally:
            self._hashes.save()

    def _run(self, tasks: Sequence[ImageTask]) -> Iterator[ImageResult]:
        at_once = self.engine.parallel_tiles  # so that tiles of the next image fill the gap at the end of an image
        budget = _MemoryBudget(at_once)
        with (
            ThreadPoolExecutor(_READERS) as readers,
            ThreadPoolExecutor(at_once) as predictors,
            ThreadPoolExecutor(_WRITERS) as writers,
        ):
            waiting = iter(tasks)

            def start(task: ImageTask) -> tuple[ImageTask, Future[ImageResult | _Predicted]]:
                return task, predictors.submit(self._predict, task, readers.submit(self._read, task), budget)

            predicting = deque(start(task) for task in islice(waiting, at_once + _AHEAD))
            writing: deque[Future[ImageResult]] = deque()
            while predicting:
                task, future = predicting.popleft()
                try:
                    predicted = future.result()
                except _OutputError as error:
                    raise error.cause from None
                predicting.extend(start(ahead) for ahead in islice(waiting, 1))
                if isinstance(predicted, ImageResult):
                    yield predicted
                    continue
                writing.append(writers.submit(self._write, task, *predicted))
                while writing and (writing[0].done() or len(writing) > _WRITERS):
                    yield writing.popleft().result()
            for finished in writing:
                yield finished.result()

    def _read(self, task: ImageTask) -> "_Source | Record":
        """Read the image; or its record, if it is segmented already."""
        slide = is_slide(task.path, megapixels=self.options.slide_megapixels)
        mpp = _pixel_size(task.path, self.options.mpp, slide=slide)
        sha256 = self._hashes.sha256(task.path)
        if record := self._existing(task, sha256, mpp):
            return record
        return _Source(sha256, mpp, None if slide else read_image(task.path, bit_depth=self.options.bit_depth))

    def _existing(self, task: ImageTask, sha256: str, mpp: float | None) -> Record | None:
        """The record of the same segmentation, if all its files exist."""
        path = self.out / f"{task.name}.json"
        if not path.is_file():
            return None
        with suppress(DataError):
            record = read_record(path)
            same = (record.source_sha256, record.mpp) == (sha256, mpp)
            kept = self.options.keep_existing
            same = same and (kept or _key(record.provenance) == _key(self.provenance))
            same = same and (kept or record.stains == tuple(self.options.stains))
            complete = all((self.out / file).is_file() for file in record.outputs.values())
            if same and complete and set(self.options.outputs) <= record.outputs.keys():
                return record
        return None

    def _predict(
        self, task: ImageTask, reading: "Future[_Source | Record]", budget: _MemoryBudget
    ) -> "ImageResult | _Predicted":
        """Segment an image, which has to be written then; or return the result if nothing is left to do."""
        try:
            source = reading.result()
            if isinstance(source, Record):
                return ImageResult(task, source, skipped=True)
            if source.pixels is None:
                with budget.slide():
                    return self._segment_slide(task, source)
            with budget.image:
                found = segment_pixels(
                    self.engine,
                    source.pixels,
                    provenance=self.provenance,
                    mpp=source.mpp,
                    reference=self.reference,
                    source=str(task.path),
                    source_sha256=source.sha256,
                    stains=self.options.stains,
                )
                return found, source.pixels
        except _OutputError:
            raise
        except Exception as error:
            return _failed(task, error)

    def _segment_slide(self, task: ImageTask, source: _Source) -> ImageResult:
        try:
            record = segment_slide(
                self.engine,
                task.path,
                self.out,
                provenance=self.provenance,
                outputs=self.options.outputs,
                mpp=None if source.mpp is None else StatedMpp(source.mpp, "the batch", overrides=True),
                skip_glass=self.options.skip_glass,
                name=task.name,
                sha256=source.sha256,
                reference=self.reference,
                bit_depth=self.options.bit_depth,
                stains=self.options.stains,
            )
        except OSError as error:  # a damaged slide raises ImageReadError
            raise _OutputError(error) from error
        return ImageResult(task, record)

    def _write(self, task: ImageTask, found: Segmentation, image: npt.NDArray[np.uint8]) -> ImageResult:
        """Write outputs. An image that cannot be measured fails alone; an unwritable folder ends the batch."""
        try:
            files = found.save(self.out, self.options.outputs, image, task.name)
            return ImageResult(task, read_record(files["record"]))
        except OSError:
            raise
        except Exception as error:
            return _failed(task, error)


_Predicted = tuple[Segmentation, npt.NDArray[np.uint8]]  # and its image


class _OutputError(Exception):
    """The folder cannot be written to, so the outputs of later images could not be kept either."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def segment_file(
    engine: Engine,
    path: Path,
    *,
    provenance: Provenance,
    mpp: float | None = None,
    reference: ReferenceDistribution | None = None,
) -> Segmentation:
    """Segment one image file, without writing files; the arguments are those of `segment_slide`.

    Raises:
        ImageReadError: The file is not a readable image.
        DataError: Its pixel size is far from that of the model.
    """
    sha256 = source_sha256(path) if path.is_file() else ""  # read_image reports a missing file
    return segment_pixels(
        engine,
        read_image(path),
        provenance=complete_provenance(provenance, engine),
        mpp=_pixel_size(path, mpp),
        reference=reference,
        source=str(path),
        source_sha256=sha256,
    )


def segment_pixels(
    engine: Engine,
    image: npt.NDArray[np.uint8],
    *,
    provenance: Provenance,
    mpp: float | None = None,
    reference: ReferenceDistribution | None = None,
    source: str = "array",
    source_sha256: str | None = None,
    stains: tuple[str, ...] = (),
) -> Segmentation:
    """Segment RGB pixels, (H, W, 3); the other arguments are recorded in the segmentation."""
    started = time.perf_counter()
    outputs = engine.outputs(image, mpp)  # (K + M, H, W)
    probabilities = outputs[: len(engine.classes)]  # (K, H, W)
    return Segmentation(
        mask=probabilities.argmax(axis=0).astype(np.uint8),  # (H, W)
        probabilities=probabilities,
        classes=engine.classes,
        mpp=mpp,
        provenance=provenance,
        source=source,
        source_sha256=source_sha256,
        seconds=round(time.perf_counter() - started, 3),
        ood_score=image_ood_score(reference, image, engine.zoom(mpp)),
        instances=engine.label_objects(outputs, mpp) if engine.instances else None,
        instance_classes=tuple(engine.classes[index] for index in engine.instances),
        stains=stains,
        pixels=image if stains else None,
    )


def complete_provenance(provenance: Provenance, engine: Engine) -> Provenance:
    """Add the weights and settings of an engine."""
    inference = {**provenance.inference, **engine.parameters}
    return provenance.model_copy(update={"weights_sha256": engine.weights_sha256, "inference": inference})


def _key(provenance: Provenance) -> tuple[str, str | None, str]:
    """What has to be equal for two segmentations of an image to be the same."""
    return provenance.model, provenance.weights_sha256, json.dumps(provenance.inference, sort_keys=True)


def _pixel_size(path: Path, given: PixelSizes, *, slide: bool = False) -> float | None:
    stated = given.get(path.name) if isinstance(given, Mapping) else given
    if isinstance(stated, float | int):
        stated = StatedMpp(float(stated), "mpp")
    if not slide:
        return agreed_mpp(path, image_mpp(path), stated)
    with open_slide(path) as opened:
        return agreed_mpp(path, opened.mpp, stated)


def _failed(task: ImageTask, error: Exception) -> ImageResult:
    reason = " ".join(str(error).split()) or repr(error)
    return ImageResult(task, reason=reason if isinstance(error, MicrosegError) else f"{type(error).__name__}: {reason}")
