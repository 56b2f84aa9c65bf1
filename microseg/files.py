"""Atomic writes, hashes and links of files."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from hashlib import file_digest
from pathlib import Path

from microseg.errors import NoSpaceError

__all__ = [
    "atomic_write",
    "clone_or_copy",
    "disk_full_error",
    "file_sha256",
    "is_below",
    "link_or_copy",
    "unsafe_reason",
    "write_text_file",
]

_FICLONE = 0x40049409  # ioctl of Linux that makes a file share the blocks of another one
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Write a file atomically: to a temporary file beside it, which replaces it when the block ends without an error.

    Args:
        path: The file to write; its folder exists.
        needed: Its size in bytes, where it is known before.

    Yields:
        The temporary file to write to.

    Raises:
        NoSpaceError: The disk is full; an earlier file at the path is unchanged.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with disk_full_error(path, needed, part):
            yield part
            os.replace(part, path)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def disk_full_error(path: Path, needed: int | None = None, part: Path | None = None, kept: str = "") -> Iterator[None]:
    """Raise a `NoSpaceError`, where the disk is full, that states what was written, and how much is needed.

    Args:
        path: What is written: a file or a folder.
        needed: Its size in bytes, where it is known before; what does not fit is not begun.
        part: The temporary file or folder that it is written to.
        kept: What was written before and remains, as a sentence.
    """
    try:
        if needed is not None and (free := _free_bytes(path)) < needed:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free")
        yield
    except NoSpaceError:
        raise
    except OSError as error:
        if error.errno not in _FULL and os.strerror(errno.ENOSPC) not in str(error):  # pyarrow's have no number
            raise
        free = _free_bytes(path)
        size = f"{needed:,}" if needed is not None else f"more than {free + (_size(part) if part else 0):,}"
        raise NoSpaceError(
            f"{path}: expected room to write it, but the disk is full: it needs {size} bytes, {free:,} are free. "
            f"{kept or 'Nothing was changed, and nothing is lost.'} Free some space, then run the same again."
        ) from error


def _free_bytes(path: Path) -> int:
    """Free space where a file or folder is, or will be."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())


def write_text_file(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; its folder is created if needed."""
    content = text.encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, len(content)) as part:
        part.write_bytes(content)


def link_or_copy(path: Path, target: Path) -> None:
    """Hard-link a file that never changes, or copy it where the file system does not support that.

    Args:
        path: The file.
        target: The new path; it does not exist yet.

    Raises:
        NoSpaceError: The disk is full.
    """
    try:
        os.link(path, target)
    except OSError:
        with disk_full_error(target, path.stat().st_size):
            shutil.copyfile(path, target)


def clone_or_copy(path: Path, target: Path) -> None:
    """Let a new file share the content of another one where the file system can (reflink, else hard link), or copy it.

    Args:
        path: The file.
        target: The new path; it does not exist yet.

    Raises:
        NoSpaceError: The disk is full.
    """
    try:
        with path.open("rb") as source, target.open("xb") as clone:
            ioctl(clone.fileno(), _FICLONE, source.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        link_or_copy(path, target)
    else:
        shutil.copystat(path, target)


def file_sha256(path: Path) -> str:
    """Hash a file.

    Args:
        path: The file.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        FileNotFoundError: There is no regular file; reading a FIFO would wait for ever.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "expected a regular file, found none", str(path))
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


def unsafe_reason(path: Path, roots: Iterable[Path]) -> str:
    """Why a file from outside is not opened: a link that leads out of the allowed folders, a FIFO, a device.

    Args:
        path: The file.
        roots: Folders that links may lead to.

    Returns:
        What was expected, what was found, and what to do; empty where the file can be opened.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"expected a file, got a link to nothing ({error.strerror}). Send the file itself."
        return ""  # reported when it is read
    if not is_below(path, roots):
        return (
            "expected a file of the delivery, got a link to somewhere else, which is not followed. Send the file "
            "itself, or add the folder that it leads to to data.allowed_roots."
        )
    if not stat.S_ISREG(mode):
        kind = "a FIFO" if stat.S_ISFIFO(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or socket"
        return f"expected a file, got {kind}. Send the file itself."
    return ""
