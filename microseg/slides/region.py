"""A region of a slide as an image of a dataset, which is read only when it is needed."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from microseg.errors import DataError, ImageReadError
from microseg.slides.channels import ReadOptions
from microseg.slides.identity import source_sha256, source_state
from microseg.slides.images import read_image
from microseg.slides.readers import open_slide
from microseg.slides.slide import Slide

__all__ = ["ImageSource", "RecordedSlide", "SlideRegion", "read_source"]

_MOST_OPEN = 16  # slides that a process keeps open

Pixels = npt.NDArray[np.uint8]


class RecordedSlide(NamedTuple):
    """What was recorded of a slide that stays where it is.

    Attributes:
        sha256: See `source_sha256`.
        state: See `source_state`.
    """

    sha256: str
    state: str


@dataclass(frozen=True)
class SlideRegion:
    """A region of a slide. Nothing is open or in memory before it is read.

    A process keeps the slides open that were read last; a forked process opens its own.

    Attributes:
        path: The file, or the folder of a slide.
        box: Left, upper, right and lower edge, in pixels of the slide's finest level.
        recorded: What the file must still be, where it is one that others can change; checked when it is opened.
        options: Bit depth and channels, see `read_image`.
    """

    path: Path
    box: tuple[int, int, int, int]
    recorded: RecordedSlide | None = None
    options: ReadOptions | None = None

    @property
    def name(self) -> str:
        """Name of the slide's file, and the position of the region."""
        return f"{self.path.name}, {self.box[0]}, {self.box[1]}"

    @property
    def width(self) -> int:
        """Pixels of the finest level."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        """Pixels of the finest level."""
        return self.box[3] - self.box[1]

    def read(self) -> Pixels:
        """Read all of it, at its full resolution.

        Shape:
            (height, width, 3)

        Raises:
            ImageReadError: The file cannot be read, or is another one than was recorded.
        """
        left, top, *_ = self.box
        return self._opened().read_region(0, left, top, self.width, self.height)

    def crop(self, box: tuple[float, float, float, float], size: tuple[int, int]) -> Pixels:
        """Read a part of it at another scale: from a level of the slide that is fine enough, resampled bilinearly.

        Args:
            box: Left, upper, right and lower edge of the part, in pixels of the finest level, from the upper left
                corner of the region.
            size: Width and height of the result, in pixels.

        Shape:
            (size[1], size[0], 3)

        Raises:
            DataError: The part is not inside the region.
            ImageReadError: As for `read`.
        """
        left, top, right, bottom = box
        if min(left, top) < 0 or right > self.width + 1e-6 or bottom > self.height + 1e-6:
            raise DataError(f"{self.path}: expected a part inside of {self.width} x {self.height} pixels, got {box}.")
        part = (self.box[0] + left, self.box[1] + top, right - left, bottom - top)
        return self._opened().read_part(part, size)

    def _opened(self) -> Slide:
        return _opened(self.path, self.recorded, self.options)


ImageSource = Path | SlideRegion
"""An image of a dataset: a file, or a region of a slide."""


def read_source(image: ImageSource) -> Pixels:
    """Read an image file, or a region of a slide, at its full resolution.

    Shape:
        (H, W, 3)

    Raises:
        ImageReadError: The file cannot be read.
    """
    return image.read() if isinstance(image, SlideRegion) else read_image(image)


class _Open(NamedTuple):
    slide: Slide
    state: tuple[int, int, int]


_slides: OrderedDict[tuple[Path, RecordedSlide | None, ReadOptions | None], _Open] = OrderedDict()
_lock = threading.Lock()


def _forget() -> None:
    """Open slides anew in a forked process: it shares the position in open files with its parent."""
    global _lock
    _lock = threading.Lock()
    _slides.clear()


os.register_at_fork(after_in_child=_forget)


def _opened(path: Path, recorded: RecordedSlide | None, options: ReadOptions | None) -> Slide:
    """The slide, opened now or before; a file that was replaced since is opened again."""
    key = path.absolute(), recorded, options
    try:
        status = path.stat()
    except OSError as error:
        raise ImageReadError(f"{path}: expected a slide, found none ({error.strerror}). {_where(recorded)}") from error
    state = status.st_ino, status.st_size, status.st_mtime_ns
    with _lock:
        found = _slides.pop(key, None)
        if found is None or found.state != state:
            if recorded is not None and source_state(path) != recorded.state and source_sha256(path) != recorded.sha256:
                raise ImageReadError(
                    f"{path}: expected the slide that was ingested, got another content. Restore it, or ingest it "
                    "under a new name."
                )
            found = _Open(open_slide(path, options), state)
        _slides[key] = found
        if len(_slides) > _MOST_OPEN:
            _slides.popitem(last=False)  # closed when no thread reads it any more
        return found.slide


def _where(recorded: RecordedSlide | None) -> str:
    if recorded is None:
        return "Check the dataset out again."
    return "The dataset refers to it where it was ingested: mount that folder, or ingest the slide again."
