"""An annotation file as the formats see it: its content, parsed once and with limits, and the image that it is for."""

import gzip
import io
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from microseg.errors import ImageReadError
from microseg.errors import ParseError as TextError
from microseg.parsing import file_kind, parse_json

__all__ = ["MAX_BYTES", "AnnotatedImage", "AnnotationFile", "open_annotation", "read_errors"]

MAX_BYTES = 2**29  # of a text file, also after decompression
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class AnnotatedImage:
    """The image or slide that annotations are for.

    Attributes:
        name: Its file name.
        width: In pixels of its finest level.
        height: In pixels of its finest level.
        mpp: Microns per pixel of the finest level; None if unknown.
    """

    name: str
    width: int
    height: int
    mpp: float | None = None

    def has_name(self, stated: str) -> bool:
        """Whether a name is that of this image; folders, endings and case do not count."""
        return _stem(stated) == _stem(self.name)

    def check_name(self, *stated: object) -> None:
        """Check the names of images that an annotation file, or the objects in it, state, if they state any.

        Raises:
            ImageReadError: All of them are those of other images.
        """
        names = [name for name in stated if isinstance(name, str) and name.strip()]
        if names and not any(map(self.has_name, names)):
            raise ImageReadError(
                f"expected annotations of {self.name}, got those of {names[0]}, as the file states. Give it the name "
                "of its image, or correct the name in it."
            )

    def scale_from(self, width: object, height: object) -> float:
        """Factor from the pixels of a stated image size to those of this image; 1 where none is stated.

        Raises:
            ImageReadError: The stated size has other proportions.
        """
        if not width or not height:
            return 1.0
        if not all(isinstance(side, int | float) and 0 < side < 2**31 for side in (width, height)):
            raise ImageReadError(f"expected the size of the image in pixels, got {width} x {height}. Correct the file.")
        stated_width, stated_height = float(width), float(height)  # type: ignore[arg-type]
        factor = self.width / stated_width
        # each side of a reduced level is rounded to whole pixels
        if abs(self.height / stated_height - factor) * min(stated_height, self.height) > 1 + factor:
            raise ImageReadError(
                f"expected annotations of an image of {self.width} x {self.height} pixels, got {width} x {height}, as "
                "the file states: it is of another image. Export the annotations of this one."
            )
        return factor

    def scale_from_mpp(self, stated: float | None) -> float:
        """Factor from pixels of a stated size to those of this image; 1 where either is unknown or they are equal.

        Args:
            stated: Microns per pixel of the coordinates.
        """
        if stated is None or self.mpp is None or abs(stated / self.mpp - 1) < 0.05:  # rounded differently
            return 1.0
        return stated / self.mpp


class AnnotationFile:
    """A file of annotations. Its content is read and parsed when first needed, and only once.

    Args:
        path: The file.

    Attributes:
        index: What a format has found in it, for the next image of the same file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index: dict[str, Any] = {}

    @cached_property
    def text(self) -> bytes:
        """The content, decompressed; empty for an image.

        Raises:
            ImageReadError: The file is missing, damaged, not UTF-8, or too large.
        """
        with read_errors(self.path):
            with self.path.open("rb") as file:
                head = file.read(2)
                file.seek(0)
                if head == _GZIP:
                    with gzip.open(file) as packed:
                        content = packed.read(MAX_BYTES + 1)
                elif _is_text(file.read(64)):
                    file.seek(0)
                    content = file.read(MAX_BYTES + 1)
                else:
                    return b""
            if len(content) > MAX_BYTES:
                raise ImageReadError(
                    f"expected at most {MAX_BYTES // 2**20} MB of text, got more. Export fewer objects or measurements."
                )
            if not content.strip():
                raise ImageReadError("expected annotations, got an empty file. Export or copy it again.")
            return _utf8(content)

    @cached_property
    def json(self) -> Any:
        """The content as JSON; None where it is not JSON.

        Raises:
            ImageReadError: It begins as JSON, and is none.
        """
        if self.text.lstrip()[:1] not in (b"{", b"["):
            return None
        with read_errors(self.path):
            return parse_json(self.text)

    @cached_property
    def xml_root(self) -> str | None:
        """Name of the outermost XML element; None where the file is not XML."""
        if self.text.lstrip()[:1] != b"<":
            return None
        found = re.search(rb"<\s*([A-Za-z_][\w.-]*)", re.sub(rb"(?s)<!--.*?-->", b"", self.text[: 2**16]))
        return found[1].decode() if found else None

    def xml(self, *tags: str) -> Iterator[tuple[str, Element]]:
        """Elements of an XML file.

        Args:
            tags: Names of elements to wait for.

        Yields:
            ``start`` and each of these elements when it begins, with its attributes only, and ``end`` and the element
            when it is complete; after that its children are removed, so that memory does not grow with the file.

        Raises:
            ImageReadError: The file is damaged, or declares entities, which could expand without bound.
        """
        with read_errors(self.path):
            for event, element in iterparse(io.BytesIO(self.text), events=("start", "end"), forbid_dtd=True):
                if element.tag in tags:
                    yield event, element
                    if event == "end":
                        element.clear()


def open_annotation(path: Path) -> AnnotationFile:
    """Open a file; one that was opened just before, for another image, is not parsed again."""
    with read_errors(path):
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise ImageReadError(f"expected a file, got {file_kind(status.st_mode)}. Check the path.")
    return _opened(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _opened(path: Path, _time: int, _size: int) -> AnnotationFile:
    return AnnotationFile(path)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Raise an `ImageReadError` that names the file, for whatever is raised while it is read."""
    try:
        yield
    except ImageReadError as error:
        raise ImageReadError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except DefusedXmlException as error:
        raise ImageReadError(
            f"{path}: expected XML without a document type or entities, got {error}. Export the file again."
        ) from error
    except (ParseError, TextError) as error:
        reason = str(error) if isinstance(error, TextError) else f"expected XML, got: {error}"
        raise ImageReadError(
            f"{path}: {reason}. The file is damaged or incomplete; export or copy it again."
        ) from error
    except Exception as error:  # a format of another package may raise anything, and damaged files nearly anything
        raise ImageReadError(
            f"{path}: expected an annotation, but it cannot be read: {type(error).__name__}: {error}. "
            "Correct the file, or export it in another format."
        ) from error


def _is_text(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1] in (b"{", b"[", b"<", b"") and head[:4] not in (
        b"II*\0",
        b"MM\0*",
    )


def _utf8(content: bytes) -> bytes:
    """Content in UTF-8, without byte order mark."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content if b"<" in content[:4] else content.decode("utf-16").encode()  # XML parsers know it themselves
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip()[:1] == b"<":
        return content  # the declaration states the encoding
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageReadError(
            f"expected text in UTF-8, got another encoding (byte {error.start}). Save or export it in UTF-8."
        ) from error
    return content


def _stem(name: str) -> str:
    """Name of an image by which it is compared: without folder and suffix, regardless of case."""
    last = re.split(r"[/\\]", name.strip())[-1]
    return unicodedata.normalize("NFC", re.sub(r"(\.ome)?(\.zarr)?\.[A-Za-z0-9]{1,5}$", "", last)).casefold()
