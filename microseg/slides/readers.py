"""Slide readers: the extension point for file formats, and opening a file with the reader that can read it.

A package adds a format by one class, which is named under the entry-point group ``microseg.slide_readers``::

    class NumpyReader:
        priority = 60
        suffixes = (".npy",)

        def can_open(self, path: Path) -> bool:
            return path.suffix.lower() == ".npy"

        def open(self, path: Path) -> Slide:
            return ArraySlide(np.load(path, mmap_mode="r"), path, mpp=None)

The built-in readers are ``dicom`` and ``zarr`` (priority 110), ``openslide`` (100), ``tiff`` (50) and ``image`` (0).
"""

import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import tifffile
from PIL import Image

from microseg.errors import ImageReadError
from microseg.plugins import create_plugins
from microseg.slides import images
from microseg.slides.channels import Channel, ChannelSlide, Counts, ReadOptions
from microseg.slides.images import IMAGE_SUFFIXES, read_image
from microseg.slides.parts import is_slide_folder
from microseg.slides.pixel_size import image_mpp
from microseg.slides.slide import ArraySlide, Slide
from microseg.slides.tiff_layout import is_tiff

__all__ = [
    "SLIDE_READERS",
    "ImageReader",
    "SlideReader",
    "can_be_slide",
    "channel_counts",
    "file_mpp",
    "image_pixels",
    "is_slide",
    "open_slide",
    "readable_suffixes",
    "slide_suffixes",
]

SLIDE_READERS = "microseg.slide_readers"
"""Entry-point group of the readers."""

_log = logging.getLogger(__name__)


class SlideReader(Protocol):
    """Opens the files of one format. The class is instantiated once, without arguments.

    Attributes:
        priority: Readers are asked in descending order of it, and the first one that can open a file is used.
        suffixes: Endings of the whole slides that it opens, in lower case with the dot. Files with one of them are
            found in batches, are always read by regions, and are rejected as training images. Empty for a reader of
            ordinary images, which are read by regions only where they are large.
        folders: Whether it opens folders, too, such as those of OME-Zarr; False where it has no such attribute.
    """

    priority: int
    suffixes: tuple[str, ...]

    def can_open(self, path: Path) -> bool:
        """Whether this reader is the one for a file. It is asked of every file, so it reads a header at most.

        Args:
            path: An existing file of any kind.
        """

    def open(self, path: Path) -> Slide:
        """Open a file that `can_open` accepted.

        Args:
            path: The file.

        Returns:
            A slide: its levels, its pixel size, and regions of its pixels.

        Raises:
            ImageReadError: The file is damaged.
        """


class ImageReader:
    """Reads any image that `read_image` reads. It is asked last, and its error states what is wrong."""

    priority = 0
    suffixes: tuple[str, ...] = ()

    def can_open(self, _path: Path) -> bool:
        """Accept every file."""
        return True

    def open(self, path: Path, options: ReadOptions | None = None) -> Slide:
        """Read the whole image; ``options`` as for `read_image`."""
        return ArraySlide(read_image(path, options=options), path, image_mpp(path))

    def mpp(self, path: Path) -> float | None:
        """Microns per pixel that the file states, whatever its channels are; None where it states none."""
        return image_mpp(path)

    def channel_counts(self, path: Path, channels: tuple[Channel, ...]) -> Counts | None:
        """Count the values of the channels; see the function of this name."""
        return images.channel_counts(path, channels)


def open_slide(path: Path | str, options: ReadOptions | None = None) -> Slide:
    """Open any image file to read it by regions.

    Args:
        path: A whole slide, a TIFF (plain, tiled, pyramidal, OME), or any image that `read_image` reads, which is then
            held in memory.
        options: See `read_image`. What readers of other packages open is RGB, of which channels are chosen.

    Returns:
        The slide; close it after use.

    Raises:
        ImageReadError: The file is missing, empty, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file() and not is_slide_folder(path):
        raise ImageReadError(f"{path}: expected a slide or an image, found none. Check the path.")
    name, reader = _reader_for(path)
    try:
        if isinstance(reader, ImageReader):
            return reader.open(path, options)
        slide = reader.open(path)
        return ChannelSlide(slide, options.channels) if options is not None and options.channels else slide
    except ImageReadError as error:
        if broken := " ".join(_plugins()[1].values()):
            raise ImageReadError(f"{error} These readers could not be asked: {broken}") from error
        if type(reader) is ImageReader and path.name.lower().endswith(slide_suffixes()):
            raise ImageReadError(
                f"{path}: expected a slide ({path.suffix}), got a file that no slide reader recognizes: it is empty, "
                "cut off, or of another kind. Copy it again with all of its files."
            ) from error
        raise
    except Exception as error:  # a reader of another package may raise anything
        raise ImageReadError(
            f"{path}: expected a slide, but the slide reader {name!r} failed: {type(error).__name__}: {error}. "
            "Update or uninstall its package, or export the file as TIFF."
        ) from error


def channel_counts(path: Path, channels: tuple[Channel, ...]) -> Counts | None:
    """Count the values of the channels of a file, in all of it or in places of a large one.

    Args:
        path: An image or a slide.
        channels: The channels.

    Returns:
        Counts of each source of each channel; None where the values are not of 16 bits, or the file states their range.

    Raises:
        ImageReadError: The file cannot be read, or has not these channels.
    """
    reader = _reader_for(path)[1]
    return reader.channel_counts(path, channels) if isinstance(reader, ImageReader) else None


def is_slide(path: Path | str, *, megapixels: float) -> bool:
    """Whether a file is better read by regions than as a whole.

    Args:
        path: The file.
        megapixels: Smallest image to read by regions; whole slides always are.
    """
    path = Path(path)
    if is_slide_folder(path):
        return True
    if not path.is_file():
        return False
    if path.name.lower().endswith(slide_suffixes()) or _reader_for(path)[1].suffixes:
        return True
    pixels = image_pixels(path)
    return pixels is not None and pixels > megapixels * 1e6


def can_be_slide(path: Path) -> bool:
    """Whether a reader of slides or of TIFF recognizes a file by its content.

    Args:
        path: An existing file with any ending.
    """
    with suppress(ImageReadError, OSError):
        return type(_reader_for(path)[1]) is not ImageReader
    return False


def slide_suffixes() -> tuple[str, ...]:
    """Endings of whole-slide files, of all readers; further slides are TIFF files, recognized by their content."""
    return tuple(suffix for _, reader in _readers() for suffix in reader.suffixes)


def readable_suffixes() -> tuple[str, ...]:
    """Endings of all files that `open_slide` opens: of images and of whole slides."""
    return (*IMAGE_SUFFIXES, *slide_suffixes())


def file_mpp(path: Path) -> float | None:
    """Microns per pixel that a file of any kind states; None where it states none, or cannot be read."""
    with suppress(ImageReadError, OSError):
        reader = _reader_for(path)[1]
        if isinstance(reader, ImageReader):
            return reader.mpp(path)
        with open_slide(path) as slide:
            return slide.mpp
    return None


def image_pixels(path: Path) -> int | None:
    """Number of pixels according to an image file's header; None when it cannot be read."""
    with suppress(Exception), warnings.catch_warnings():  # any fault of the file is reported when it is read
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if is_tiff(path):
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                return int(page.imagewidth) * int(page.imagelength)
        with Image.open(path) as image:
            return image.width * image.height
    return None


def _reader_for(path: Path) -> tuple[str, SlideReader]:
    for name, reader in _readers():
        if path.is_dir() and not getattr(reader, "folders", False):
            continue
        try:
            if reader.can_open(path):
                return name, reader
        except Exception as error:  # a reader of another package must not prevent the others from reading
            _log.warning("Slide reader %r failed on %s and was skipped: %r", name, path, error)
    raise ImageReadError(f"{path}: expected a slide or an image, got a kind of file that no slide reader can open.")


def _readers() -> list[tuple[str, SlideReader]]:
    """All readers with their names, in the order in which they are asked."""
    return sorted(_plugins()[0].items(), key=lambda entry: -int(entry[1].priority))


def _plugins() -> tuple[Mapping[str, SlideReader], Mapping[str, str]]:
    return create_plugins(SLIDE_READERS, "priority", "suffixes", "can_open", "open")
