"""Writing of segmentations: strips of the mask go to the output writers, and all files of an image appear together."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from microseg.errors import SettingsError
from microseg.models.separation import Separation
from microseg.outputs.files import publish, staged
from microseg.outputs.image_summary import ConfidenceSums, count_positive, summarize
from microseg.outputs.objects import PIECE, ObjectFinder
from microseg.outputs.record import ImageInfo, Record, software_versions
from microseg.outputs.stains import image_amounts
from microseg.outputs.writers import MaskStrip, OutputWriter, Thumbnail, load_writers
from microseg.threads import Threads

__all__ = ["SegmentationWriter"]


class SegmentationWriter:
    """Writes the outputs of one image from the strips of its mask. Use it in a ``with`` block::

        with SegmentationWriter(folder, image, outputs, thumbnail, slide=True) as writer:
            for strip in strips:
                writer.add(strip)
            record = writer.finish(confidence, seconds=3.2)

    The files are written to a temporary folder. `finish` moves them to their places, and ``<name>.json``, the record,
    last: without it the others do not count. After an error nothing has changed.

    Args:
        folder: Folder of the outputs; exists.
        image: The image.
        outputs: Names of output writers.
        thumbnail: Reads the whole image at a reduced size.
        slide: Whether the mask has many strips, so that memory has to be bounded. False: one strip is the whole mask.
        separation: How touching objects are separated in strips with their interior; None where they are not.
        threads: Number of threads that make the outputs. One: the calling thread.

    Raises:
        SettingsError: An output is unknown, or needs probabilities, which slides do not have.
    """

    def __init__(
        self,
        folder: Path,
        image: ImageInfo,
        outputs: Collection[str],
        thumbnail: Thumbnail,
        *,
        slide: bool,
        separation: Separation | None = None,
        threads: int = 1,
    ) -> None:
        self._folder, self._image, self._thumbnail, self._slide = folder, image, thumbnail, slide
        self._separation, self._count = separation, threads
        if image.instances and "labels" in outputs and not isinstance(outputs, str):
            outputs = [*outputs, "instances"]  # which pixels belong to which object cannot be told from the mask
        if image.regions is not None and not isinstance(outputs, str):
            outputs = [*outputs, "regions"]
        self._types = load_writers(outputs)
        refused = [name for name, writer in self._types.items() if writer.needs_probabilities]
        if slide and refused:
            raise SettingsError(
                f"Expected outputs that can be written for slides, got {', '.join(refused)}: the probabilities of a "
                "slide are too large. Leave it out of inference.outputs."
            )
        self._files = {name: image.name + writer.suffix for name, writer in self._types.items()}
        self._pixels = np.zeros(256, np.int64)  # of each mask value

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # closed if a writer cannot be made
            self._staging = stack.enter_context(staged(self._folder, self._image.name))
            self._threads = stack.enter_context(Threads(self._count))
            self._beside = stack.enter_context(Threads(min(self._count, 2)))  # its calls start others
            self._writers: list[OutputWriter] = []
            for name, writer_type in self._types.items():
                writer = writer_type(self._staging / self._files[name], self._image, self._thumbnail)
                stack.callback(writer.close)
                writer.threads = self._threads
                self._writers.append(writer)
            finder = ObjectFinder(
                self._image.mask_shape[1],
                self._staging,
                outlines=any(writer.needs_objects for writer in self._writers) or self._image.dab_threshold is not None,
                piece=PIECE if self._slide else None,
                separation=self._separation,
                amounts=image_amounts(self._image),
                numbers=any(writer.needs_labels for writer in self._writers),
                threads=self._threads,
            )
            self._objects = stack.enter_context(finder)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)  # that of a full disk becomes a `NoSpaceError`

    def add(self, strip: MaskStrip) -> None:
        """Add the next strip of the mask."""
        written = self._beside.start(self._write_strip, strip)
        self._objects.add(strip)
        written.result()

    def _write_strip(self, strip: MaskStrip) -> None:
        rows = max(1, PIECE // strip.mask.shape[1])
        parts = (strip.mask[start : start + rows] for start in range(0, len(strip.mask), rows))
        for counts in self._threads.map(partial(_count_values, classes=len(self._image.classes)), parts):
            self._pixels += counts
        for writer in self._writers:
            if writer.needs_probabilities and strip.probabilities is None:
                raise SettingsError("Expected probabilities, this segmentation has none: leave that output out.")
            writer.add_strip(strip)

    def finish(
        self,
        confidence: ConfidenceSums | None,
        *,
        seconds: float | None,
        summary: Mapping[str, float | None] | None = None,
        tissue: float | None = None,
    ) -> Record:
        """Complete the files and move them to their places.

        Args:
            confidence: Sums over the computed pixels; None if unknown.
            seconds: Time of the network; None if unknown.
            summary: Further measurements of the image.
            tissue: Fraction of the image that is tissue; None if unknown.

        Returns:
            The record.
        """
        finished = [self._beside.start(writer.finish) for writer in self._writers if not _waits(writer)]
        self._objects.finish()
        object_writers = [writer for writer in self._writers if writer.needs_objects]
        positive = None if self._image.dab_threshold is None else np.zeros(len(self._image.classes), np.int64)
        if object_writers or positive is not None:
            for batch in self._objects.batches(self._image):
                if positive is not None:
                    positive += count_positive(batch.columns, self._image.classes)
                for writer in object_writers:
                    writer.add_objects(batch)
        if label_writers := [writer for writer in self._writers if writer.needs_labels]:
            for labels in self._objects.labels():
                for writer in label_writers:
                    writer.add_labels(labels, len(self._objects.indices))
        for writer in self._writers:
            if _waits(writer):
                writer.finish()
        for future in finished:
            future.result()
        counts = np.bincount(self._objects.indices, minlength=256)
        record = Record(
            **dict(self._image),
            outputs=self._files,
            summary=summarize(self._image, self._pixels, counts, confidence, tissue, positive) | dict(summary or {}),
            created=datetime.now(UTC),
            seconds=seconds,
            software=software_versions(),
        )
        publish(self._staging, self._folder, record)
        return record


def _waits(writer: OutputWriter) -> bool:
    """Whether a writer needs what is known after all strips only."""
    return writer.needs_objects or writer.needs_labels


def _count_values(mask: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int64]:
    """Number of pixels of each value, (256,); fast where there are few classes."""
    counts = np.zeros(256, np.int64)
    for value in (*range(min(classes, 8)), 255):
        counts[value] = np.count_nonzero(mask == value)
    return counts if counts.sum() == mask.size else np.bincount(mask.ravel(), minlength=256)
