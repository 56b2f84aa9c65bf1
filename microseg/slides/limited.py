"""Reading files of others: the functions of `readers` and `images`, run in a child process with limits.

Decoders of images are large libraries in C, which a damaged file can keep busy for ever, crash or make take all memory.
Such a file ends the child process only, and is refused like any other damaged file.
"""

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from microseg import limits
from microseg.errors import ImageReadError, ResourceLimitError
from microseg.slides import images, pixel_size, readers
from microseg.slides.channels import Channel, Counts, ReadOptions, fill_ranges
from microseg.slides.slide import Level, Slide

__all__ = [
    "ImageFile",
    "LimitedSlide",
    "can_be_slide",
    "channel_counts",
    "file_mpp",
    "image_mpp",
    "is_slide",
    "measure_ranges",
    "measured_depth",
    "open_slide",
    "read_file",
    "read_image",
]


def read_image(path: Path | str, options: ReadOptions | None = None) -> npt.NDArray[np.uint8]:
    """Read an image as RGB; see `microseg.slides.images.read_image`.

    Shape:
        (H, W, 3)

    Raises:
        ImageReadError: The file cannot be read; `ResourceLimitError`: within the limits of `run_limited`.
    """
    return limits.run_limited(str(path), images.read_image, path, None, options)


def image_mpp(path: Path | str) -> float | None:
    """Microns per pixel that an image file states; see `microseg.slides.pixel_size.image_mpp`."""
    return limits.run_limited(str(path), pixel_size.image_mpp, path)


def is_slide(path: Path | str, *, megapixels: float) -> bool:
    """Whether a file is better read by regions than as a whole; see `microseg.slides.readers.is_slide`."""
    return limits.run_limited(str(path), _is_slide, path, megapixels)


def can_be_slide(path: Path) -> bool:
    """Whether a reader of slides or of TIFF recognizes a file; see `microseg.slides.readers.can_be_slide`.

    Raises:
        ResourceLimitError: Not within the limits of `run_limited`.
    """
    return limits.run_limited(str(path), readers.can_be_slide, path)


def file_mpp(path: Path) -> float | None:
    """Microns per pixel that a file of any kind states; see `microseg.slides.readers.file_mpp`."""
    with suppress(ResourceLimitError):  # reported when it is read
        return limits.run_limited(str(path), readers.file_mpp, path)
    return None


def measured_depth(path: Path) -> int | None:
    """Bit depth of a file of 16 bits, measured; see `microseg.slides.images.measured_depth`.

    Raises:
        ImageReadError: The file cannot be read; `ResourceLimitError`: within the limits of `run_limited`.
    """
    return limits.run_limited(str(path), images.measured_depth, path)


def channel_counts(path: Path, channels: tuple[Channel, ...]) -> Counts | None:
    """Count the values of the channels of an image or slide; see `microseg.slides.readers.channel_counts`.

    Raises:
        ImageReadError: The file cannot be read; `ResourceLimitError`: within the limits of `run_limited`.
    """
    return limits.run_limited(str(path), readers.channel_counts, path, channels)


def measure_ranges(paths: Iterable[Path], channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
    """Measure the ranges of channels for which none are stated, over all values of 16 bits of several files.

    Args:
        paths: Images and slides; one that cannot be read is left out.
        channels: The channels.
    """

    def measure() -> Counts | None:
        total: Counts | None = None
        for path in paths:
            with suppress(ImageReadError):  # reported when it is read
                counts = channel_counts(path, channels)
                if counts is not None:
                    pairs = zip(total or counts, counts, strict=True)
                    total = (
                        counts
                        if total is None
                        else [[a + b for a, b in zip(one, other, strict=True)] for one, other in pairs]
                    )
        return total

    return fill_ranges(channels, measure)


def open_slide(path: Path | str, options: ReadOptions | None = None) -> Slide:
    """Open any image file to read it by regions; see `microseg.slides.readers.open_slide`.

    Raises:
        ImageReadError: The file cannot be opened; `ResourceLimitError`: within the limits of `run_limited`.
    """
    return LimitedSlide(Path(path), options)


class ImageFile(NamedTuple):
    """What a file holds.

    Attributes:
        mpp: Microns per pixel that it states; None if it states none.
        pixels: RGB, (H, W, 3); None for a slide, which is read by regions, and where they were not asked for.
        slide: Whether it is a slide.
    """

    mpp: float | None
    pixels: npt.NDArray[np.uint8] | None
    slide: bool


def read_file(
    path: Path | str, *, megapixels: float, options: ReadOptions | None = None, pixels: bool = True
) -> ImageFile:
    """Read an image with its pixel size, or only that of a slide; see `is_slide`, `image_mpp` and `read_image`.

    Args:
        path: The file.
        megapixels: Smallest image that is a slide.
        options: See `read_image`.
        pixels: Whether to read the pixels of an image.

    Raises:
        ImageReadError: The file cannot be read; `ResourceLimitError`: within the limits of `run_limited`.
    """
    return limits.run_limited(str(path), _read_file, Path(path), megapixels, options, pixels)


class LimitedSlide(Slide):
    """A slide whose regions are decoded in child processes; each of them has it open.

    Args:
        path: The file.
        options: See `microseg.slides.images.read_image`.
    """

    def __init__(self, path: Path, options: ReadOptions | None = None) -> None:
        self._options = options
        levels, mpp = limits.run_limited(str(path), _describe, path, options)
        super().__init__(path, levels, mpp)

    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Decode a region."""
        return limits.run_limited(str(self.path), _read_region, self.path, self._options, (level, x, y, width, height))


# ---- in the child process


class _Opened(NamedTuple):
    """The slide that was opened last."""

    key: tuple[Path, ReadOptions | None, int, int]
    slide: Slide


_opened: dict[int, _Opened] = {}  # by thread: one in a child process


def _open(path: Path, options: ReadOptions | None) -> Slide:
    status, thread = path.stat() if path.exists() else None, threading.get_ident()
    key = (path.absolute(), options, status.st_mtime_ns if status else 0, status.st_size if status else 0)
    found = _opened.pop(thread, None)
    if found is None or found.key != key:
        if found is not None:
            found.slide.close()
        found = _Opened(key, readers.open_slide(path, options))
    _opened[thread] = found
    return found.slide


def _describe(path: Path, options: ReadOptions | None) -> tuple[tuple[Level, ...], float | None]:
    slide = _open(path, options)
    return slide.levels, slide.mpp


def _read_region(
    path: Path, options: ReadOptions | None, region: tuple[int, int, int, int, int]
) -> npt.NDArray[np.uint8]:
    return _open(path, options).read_region(*region)


def _read_file(path: Path, megapixels: float, options: ReadOptions | None, pixels: bool) -> ImageFile:
    if readers.is_slide(path, megapixels=megapixels):
        return ImageFile(_open(path, options).mpp, None, slide=True)
    mpp = pixel_size.image_mpp(path)
    return ImageFile(mpp, images.read_image(path, None, options) if pixels else None, slide=False)


def _is_slide(path: Path | str, megapixels: float) -> bool:
    return readers.is_slide(path, megapixels=megapixels)
