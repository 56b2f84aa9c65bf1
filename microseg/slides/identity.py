"""Identity of an image: the hash of its file, or of all files that a slide consists of."""

import json
import os
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from microseg import limits
from microseg.files import file_sha256, write_text_file
from microseg.parsing import parse_json
from microseg.slides.parts import is_address_file, slide_parts
from microseg.slides.zarr_reader import address_sha256

__all__ = ["KnownHashes", "source_sha256", "source_state"]

_SETTLED = 2.0  # seconds after which a further change of a file changes its modification time

State = list[list[str | int]]
"""Name, size and modification time of each file of an image."""


def source_sha256(path: Path) -> str:
    """Hash an image, with the further files of a slide that consists of several, see `slide_parts`.

    Args:
        path: The image, or the file or folder of a slide.

    Returns:
        SHA-256, 64 hexadecimal digits: of a single file as it is; of a slide at an address see `address_sha256`.

    Raises:
        ImageReadError: A slide at an address cannot be read.
    """
    if is_address_file(path):
        return limits.run_limited(str(path), address_sha256, path)
    parts = list(slide_parts(path))
    if not parts:
        return file_sha256(path)
    hashed = sha256(b"" if path.is_dir() else f"{file_sha256(path)}\n".encode())
    for part in parts:
        hashed.update(os.fsencode(part.relative_to(path.parent)) + f"\0{file_sha256(part)}\n".encode())
    return hashed.hexdigest()


def source_state(path: Path) -> str:
    """Sizes and modification times of the files of an image, in short: another one means that they have changed.

    Raises:
        OSError: There is no such file.
        ImageReadError: A slide at an address, whose state is its hash, cannot be read.
    """
    if is_address_file(path):
        return source_sha256(path)
    return sha256(json.dumps(_state(path)).encode()).hexdigest()[:32]


class KnownHashes:
    """Hashes of images, which are not computed again while size and modification time of their files are the same.

    Args:
        file: Where they are kept. It is read now; a missing or damaged one counts as empty.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _read(file)
        self._new: dict[str, tuple[State, str]] = {}

    def sha256(self, path: Path) -> str:
        """`source_sha256` of an image; empty if there is no file."""
        if not path.exists():
            return ""
        if is_address_file(path):
            return source_sha256(path)
        key, state = os.fsencode(path.absolute()).hex(), _state(path)
        known = self._new.get(key) or self._known.get(key)
        if known is not None and known[0] == state:
            return known[1]
        digest = source_sha256(path)
        settled = time.time() - max(int(mtime) for _, _, mtime in state) / 1e9 > _SETTLED
        if settled and _state(path) == state:
            self._new[key] = state, digest
        return digest

    def save(self) -> None:
        """Keep the hashes that were computed, beside those that other processes have kept meanwhile."""
        if self._new:
            self._known = _read(self._file) | self._new
            with suppress(OSError):  # they are computed again
                write_text_file(self._file, json.dumps(self._known))
            self._new = {}


def _state(path: Path) -> State:
    files = slide_parts(path) if path.is_dir() else (path, *slide_parts(path))
    return [[file.name, (status := file.stat()).st_size, status.st_mtime_ns] for file in files]


def _read(file: Path) -> dict[str, tuple[State, str]]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        stated = parse_json(file.read_bytes(), any_names=True)
        return {str(key): (state, str(digest)) for key, (state, digest) in stated.items()}
    return {}
