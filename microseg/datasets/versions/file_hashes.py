"""MD5 of files, as DVC computes them; a file that has not changed is not read again, by later processes neither."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest, md5
from pathlib import Path

from microseg.files import write_text_file
from microseg.parsing import parse_json

__all__ = ["file_md5", "folder_digest", "is_intact", "known_hashes", "remember"]

_LARGE = 2**22  # bytes of files whose hashes are kept
_SETTLED = 2 * 10**9  # nanoseconds after which a further change of a file changes its modification time


@contextmanager
def known_hashes(file: Path) -> Iterator[None]:
    """Use the hashes of large files that are known from earlier processes, and keep those that are computed.

    Args:
        file: Where they are kept; a missing or damaged one counts as empty.
    """
    before = _read_hashes(file)
    for identity, digest in before.items():
        _hashed.setdefault(identity, digest)
    try:
        yield
    finally:
        settled = time.time_ns() - _SETTLED
        large = {it: digest for it, digest in _hashed.items() if it[2] >= _LARGE and it[3] < settled}
        if not large.items() <= before.items():
            text = json.dumps([[*identity, digest] for identity, digest in sorted(large.items())])
            with suppress(OSError):  # they are computed again
                write_text_file(file, text)


def _read_hashes(file: Path) -> dict[tuple[int, int, int, int], str]:
    with suppress(OSError, ValueError, TypeError):
        return {(int(a), int(b), int(c), int(d)): str(e) for a, b, c, d, e in parse_json(file.read_bytes())}
    return {}


def file_md5(path: Path) -> str:
    """Hash a file as DVC does, once: a file that has not changed since is not read again, see `known_hashes`.

    Args:
        path: The file.

    Returns:
        MD5, 32 hexadecimal digits.
    """
    if (known := _hashed.get(_identity(path))) is not None:
        return known
    with path.open("rb") as file:
        digest = file_digest(file, "md5").hexdigest()
    remember(path, digest)
    return digest


def folder_digest(folder: Path) -> str:
    """DVC's hash of a folder, computed without DVC: the MD5 of the JSON list of its files and their MD5."""
    files = [
        {"md5": file_md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    files.sort(key=lambda file: file["relpath"])
    return f"{md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"


_hashed: dict[tuple[int, int, int, int], str] = {}  # MD5 of the files that this process has hashed, by identity


def _identity(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def remember(path: Path, digest: str) -> None:
    """State the hash of a file that is known."""
    _hashed[_identity(path)] = digest


def is_intact(path: Path, oid: str) -> bool:
    """Whether the cache has an intact object; a damaged one is removed, so that it is fetched again."""
    if path.is_file() and file_md5(path) != oid.removesuffix(".dir"):
        path.unlink()
    return path.is_file()
