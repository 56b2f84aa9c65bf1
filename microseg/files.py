"""Atomic writes, hashes and links of files."""

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

__all__ = ["atomic_write", "file_sha256", "is_below", "link_or_copy", "write_text_file"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: to a temporary file beside it, which replaces it when the block ends without an error.

    Args:
        path: The file to write; its folder exists.

    Yields:
        The temporary file to write to.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)


def write_text_file(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; its folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def link_or_copy(path: Path, target: Path) -> None:
    """Hard-link a file that never changes, or copy it where the file system does not support that.

    Args:
        path: The file.
        target: The new path; it does not exist yet.
    """
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def file_sha256(path: Path) -> str:
    """Hash a file.

    Args:
        path: The file.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def is_below(path: Path, roots: Iterable[Path]) -> bool:
    """Whether a path, with all links followed, is one of some folders or below one of them.

    Args:
        path: A file or folder, existing or not.
        roots: The folders; links in their own paths are followed, too.
    """
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    return any(real.is_relative_to(root.resolve()) for root in roots)
