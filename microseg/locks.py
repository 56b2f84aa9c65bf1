"""Locks of files and folders between processes, which say who holds them."""

import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from microseg.errors import LockedError
from microseg.files import disk_full_error, write_text_file
from microseg.parsing import parse_json

__all__ = ["exclusive", "lock_file", "try_lock"]


@contextmanager
def exclusive(path: Path, what: str, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock for the duration of a ``with`` block. A process that dies releases it.

    Args:
        path: The lock file, which remains; its folder is created. Beside it, ``<path>.owner`` names the holder.
        what: What is locked, for messages: ``"the outputs in /results"``.
        waiting: Called with a message that names the holder, before this waits for the lock; None: do not wait.

    Raises:
        LockedError: Another process holds it, and ``waiting`` is None.
    """
    owner, lock = path.with_name(f"{path.name}.owner"), FileLock(path)
    try:
        _acquire(lock, path, wait=False)
    except Timeout:
        message = f"{what[:1].upper()}{what[1:]} is in use by {_holder(owner)}"
        if waiting is None:
            raise LockedError(f"{message}. Wait until it has ended, or end it.") from None
        waiting(f"{message}: waiting for it to end.")
        _acquire(lock, path, wait=True)
    try:
        with suppress(OSError):  # the lock holds without it
            write_text_file(owner, json.dumps(_this_process()) + "\n")
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def try_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to hold a lock for the duration of a ``with`` block. A process that dies releases it.

    Args:
        path: The lock file, which remains; its folder is created.
        wait: Wait until the lock is free.

    Yields:
        Whether it is held; False only where another process holds it and ``wait`` is False.
    """
    lock = FileLock(path)
    try:
        _acquire(lock, path, wait=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Wait for a lock, and hold it for the duration of a ``with`` block. A process that dies releases it.

    Args:
        path: The lock file, which remains; its folder is created.
    """
    with try_lock(path, wait=True):
        yield


def _acquire(lock: BaseFileLock, path: Path, *, wait: bool) -> None:
    with disk_full_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)


def _this_process() -> dict[str, object]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = "unknown"
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"user": user, "host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _holder(owner: Path) -> str:
    try:
        stated = parse_json(owner.read_bytes())
        return f"process {stated['pid']} of {stated['user']} on {stated['host']}, since {stated['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun
        return "another process"
