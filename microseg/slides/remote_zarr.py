"""OME-Zarr at an address: a file ``<name>.zarr.url`` states it, and chunks are read when they are needed.

An address file is a text of one line, such as ``https://slides.example.org/study/case1.zarr``. It is read only where
the environment variable ``MICROSEG_ALLOWED_URLS`` names the address or one above it. User and password are not in it:
fsspec finds them where its file systems are configured (its configuration files, ``~/.netrc``, ``AWS_…`` variables).
"""

import asyncio
import os
import re
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore

from microseg.config.environment import Environment
from microseg.errors import ImageReadError, ParseError, SlideUnavailableError
from microseg.parsing import read_text

__all__ = ["RemoteStore", "open_address", "read_address"]

_MOST_BYTES = 4096  # of an address file
_SECONDS = 20.0  # for one request
_PAUSES = (0.5, 2.0)  # before it is repeated, in seconds
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_REDIRECTED, _FORBIDDEN, _TOO_MANY, _SERVER_ERROR = 300, 403, 429, 500
_PORTS = {"http": 80, "https": 443}

_Location = tuple[str, tuple[str, int | None], list[str]]


def read_address(path: Path) -> str:
    """Read an address file.

    Raises:
        ImageReadError: It is not one line with an address, or with one that must not be read.
    """
    try:
        address = read_text(path, _MOST_BYTES).strip()
    except ParseError as error:
        raise ImageReadError(f"{path}: expected one line with the address of an OME-Zarr, got: {error}.") from error
    try:
        url = urlsplit(address)
        secret = "@" in url.netloc
        parts = _location(url)
    except ValueError:
        url = None
    plain = address.isprintable() and "::" not in address and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s\\]+", address)
    if url is None or not url.netloc or not plain:
        raise ImageReadError(f"{path}: expected one line such as https://host/slide.zarr, got something else.")
    if secret or url.query or url.fragment:
        raise ImageReadError(
            f"{path}: expected an address without user, password, query or fragment, got one with them: they would be "
            "kept with the dataset. Remove them from the file, and put them into fsspec's configuration or ~/.netrc."
        )
    if any(part in (".", "..") or "/" in part or "\\" in part for part in map(unquote, parts[2])):
        raise ImageReadError(f"{path}: expected an address without . and .. in its path, got {address}.")
    allowed = Environment().microseg_allowed_urls.split()
    if not any(_is_below(parts, each) for each in allowed):
        raise ImageReadError(
            f"{path}: expected an address that may be read, got {address}. Add it, or one above it, to the environment "
            f"variable MICROSEG_ALLOWED_URLS, which is {' '.join(allowed) or 'empty'}."
        )
    return address


def open_address(path: Path) -> "RemoteStore":
    """Open the store that an address file states; nothing is read yet.

    Raises:
        ImageReadError: See `read_address`; or the file system of the address is not installed.
    """
    address = read_address(path)
    options: dict[str, Any] = {"skip_instance_cache": True}  # its connections are closed with the slide
    if urlsplit(address).scheme in _PORTS:
        options |= {
            "client_kwargs": {"trust_env": True, "raise_for_status": _refuse_redirect},
            "allow_redirects": False,
        }
    try:
        store = FsspecStore.from_url(address, storage_options=options, read_only=True)
    except (ImportError, ValueError) as error:
        raise ImageReadError(
            f"{path}: expected an address that fsspec can read, got {address}: {error}. Install the package of its "
            "file system, such as s3fs for s3:// or gcsfs for gs://."
        ) from error
    return RemoteStore(store, path, address)


class RemoteStore(WrapperStore[FsspecStore]):
    """A store in which a chunk that is missing is an error, and what passes by itself is tried again.

    Args:
        store: The store.
        path: The address file.
        address: The address.
    """

    def __init__(self, store: FsspecStore, path: Path, address: str) -> None:
        super().__init__(store)
        self._address, self._what = address, f"{path}: {address}"
        self._refused = ""  # why metadata were not read that may not be there
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._closing = weakref.finalize(self, _close, store, self._loops, os.getpid())

    def __repr__(self) -> str:
        return self._address

    def close(self) -> None:
        """Close the connections."""
        self._closing()

    def nothing_found(self) -> ImageReadError:
        """The error where no image was found: none is there, or the server does not tell."""
        if self._refused:
            return ImageReadError(
                f"{self._what}: expected an OME-Zarr image, got {self._refused}. Check that it is there, and that the "
                "credentials of this machine may read it."
            )
        return ImageReadError(
            f"{self._what}: expected an OME-Zarr image, found none. Check that the address is right up to the image's "
            "own folder, and that all of it was uploaded."
        )

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a file, or a part of one; None for metadata that are not there."""
        metadata = key.rpartition("/")[2] in _METADATA
        try:
            found = await self._get(key, prototype, byte_range)
        except ImageReadError as error:
            raise ImageReadError(f"{self._what}: {key}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:
            if metadata and (isinstance(error, PermissionError) or _status(error) == _FORBIDDEN):
                self._refused = _reason(error)
                return None  # as servers answer that must not tell what is there
            kind = SlideUnavailableError if _passes(error) else ImageReadError
            raise kind(
                f"{self._what}: expected {key}, got {_reason(error)}. Check the server and the access to it, and try "
                "again."
            ) from error
        if found is None and not metadata:
            raise ImageReadError(
                f"{self._what}: expected all chunks, {key} is missing: it would be read as black. Copy it there again; "
                "where nothing was lost, write it with write_empty_chunks."
            )
        if found is not None and (expected := _length(byte_range)) is not None and len(found) != expected:
            raise ImageReadError(
                f"{self._what}: expected {expected} bytes of {key}, got {len(found)}. The server cannot read parts of "
                "files, which shards need: write it without shards, or use another server."
            )
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of files; see `get`."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        self._loops[:] = [asyncio.get_running_loop()]
        for pause in _PAUSES:
            try:
                async with asyncio.timeout(_SECONDS):
                    return await self._store.get(key, prototype, byte_range)
            except Exception as error:
                if isinstance(error, TimeoutError) or not _passes(error):
                    raise
            await asyncio.sleep(pause)
        async with asyncio.timeout(_SECONDS):
            return await self._store.get(key, prototype, byte_range)


def _location(url: SplitResult) -> _Location:
    """Scheme, host and port, and the parts of the path of an address."""
    host = (url.hostname or "", url.port or _PORTS.get(url.scheme)) if url.scheme in _PORTS else (url.netloc, None)
    return url.scheme, host, [part for part in url.path.split("/") if part]


def _is_below(place: _Location, allowed: str) -> bool:
    with suppress(ValueError):  # a port that is no number
        above = _location(urlsplit(allowed))
        return place[:2] == above[:2] and place[2][: len(above[2])] == above[2]
    return False


async def _refuse_redirect(response: Any) -> None:
    """It could lead to an address that is not allowed, and its text would be taken for pixels."""
    if _REDIRECTED <= response.status < 400:
        raise ImageReadError(
            f"expected a file, got a redirection to {response.headers.get('Location', 'nowhere')}. State the address "
            "that it leads to."
        )


def _length(byte_range: ByteRequest | None) -> int | None:
    """Number of bytes of a part of a file; None where it is not known."""
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.end - byte_range.start
    return byte_range.suffix if isinstance(byte_range, SuffixByteRequest) else None


def _status(error: Exception) -> int | None:
    """Status of an HTTP response."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _passes(error: Exception) -> bool:
    """Whether a fault of a server or a connection may pass by itself."""
    if (status := _status(error)) is not None:
        return status >= _SERVER_ERROR or status == _TOO_MANY
    return not isinstance(error, PermissionError | ValueError | TypeError | MemoryError)


def _reason(error: Exception) -> str:
    if (status := _status(error)) is not None:
        return f"status {status} {getattr(error, 'message', '')}".strip()
    return f"no answer in {_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error) or repr(error)


def _close(store: FsspecStore, loops: list[asyncio.AbstractEventLoop], process: int) -> None:
    """Close the connections of HTTP and of object stores; a forked process has none."""
    client = getattr(store.fs, "_s3creator", None) or getattr(store.fs, "_session", None)
    if client is not None and loops and loops[0].is_running() and os.getpid() == process:
        closed = asyncio.run_coroutine_threadsafe(client.__aexit__(None, None, None), loops[0])
        if threading.current_thread() is threading.main_thread():  # not that of the loop; the process may end next
            with suppress(TimeoutError):
                closed.result(1)
