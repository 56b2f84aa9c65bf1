"""What is asked of DVC: its Python interface is not promised to stay, so nothing else here imports it."""

import logging
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

from microseg.errors import VersioningError

__all__ = ["add", "check_write_access", "file_md5", "opened", "push", "restore"]

_REMOTE = "store"
_IGNORED_BY_DVC = "# only the labs' datasets are versioned\n/*\n!/labs\n/labs/.*\n"
_LOGGERS = ("dvc", "dvc_data", "dvc_objects")
_PROGRESS_LOGGERS = ("dvc.progress", "dvc_data.callbacks")  # above the level ERROR there are no progress bars
_one_at_a_time = threading.RLock()  # DVC's loggers and console are shared by the whole process


@contextmanager
def opened(root: Path, remote: str, aim: str) -> Iterator[Any]:
    """Open the DVC repository of a folder, made when missing, with no version control of its own around it.

    Args:
        root: The repository's folder; may lie inside a git checkout or another DVC repository.
        remote: Absolute path or URL of the default remote.
        aim: What is tried, to begin the message of an error with.

    Yields:
        DVC's ``Repo``.

    Raises:
        VersioningError: Whatever goes wrong in DVC or at the remote.
    """
    from dvc.repo import Repo

    with _one_at_a_time, _quiet() as complaints:
        try:
            _configure(root, remote)
            repo = Repo(str(root))
            try:
                _check_kind(repo, remote)
                yield repo
            finally:
                repo.close()
        except Exception as error:  # DVC, and what each kind of remote raises, share no base class
            what = str(error) if isinstance(error, VersioningError) else f"{type(error).__name__}: {error}"
            cause = f" ({complaints[0]})" if complaints else ""
            raise VersioningError(
                f"{aim}, got {what}{cause}. See that {remote} is the right remote, can be reached and written, and "
                "that DVC's extra for its kind is installed."
            ) from error


def add(repo: Any, folder: Path) -> tuple[str, int, int]:
    """Put a folder into the cache, as ``dvc add`` does.

    Args:
        repo: From `opened`.
        folder: Absolute path of a folder in the repository.

    Returns:
        The folder's digest, its number of files, and their bytes together.
    """
    out = repo.add(str(folder))[0].outs[0]
    return out.hash_info.value, out.meta.nfiles, out.meta.size


def push(repo: Any, digest: str) -> None:
    """Copy to the remote what it lacks of a version, then ask it for every file.

    DVC's own push asks only for the folder's list and trusts its memory for the files.

    Args:
        repo: From `opened`.
        digest: Of a version in the cache.

    Raises:
        VersioningError: Files are missing in the remote afterwards.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.status import status

    wanted, cache, remote = {HashInfo("md5", digest)}, repo.cache.local, repo.cloud.get_remote_odb(command="push")
    repo.cloud.transfer(cache, remote, wanted, cache_odb=cache, shallow=False)
    found = status(remote, wanted, cache_odb=cache, shallow=False)
    if found.missing:
        raise VersioningError(
            f"a remote that lacks {len(found.missing)} of {len(found.missing) + len(found.exists)} files after the push"
        )


def check_write_access(repo: Any) -> None:
    """Write a small file to the remote, read it, and remove it.

    Args:
        repo: From `opened`.

    Raises:
        VersioningError: It does not come back as it was written.
    """
    store = repo.cloud.get_remote_odb(command="push")
    path, content = store.fs.join(store.path, f".microseg-{uuid.uuid4().hex}"), b"microseg"
    store.fs.makedirs(store.path, exist_ok=True)
    with store.fs.open(path, "wb") as file:
        file.write(content)
    try:
        with store.fs.open(path, "rb") as file:
            if (found := file.read()) != content:
                raise VersioningError(f"{found!r} in place of what was written")
    finally:
        store.fs.remove(path)


def restore(repo: Any, digest: str, folder: Path) -> None:
    """Copy a version's files out of the cache, after fetching from the remote what the cache lacks.

    Args:
        repo: From `opened`.
        digest: Of the version.
        folder: An empty folder; it receives read-only files.

    Raises:
        VersioningError: Neither cache nor remote has all files.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    cache, wanted = repo.cache.local, HashInfo("md5", digest)
    if not _cached(cache, digest):
        repo.cloud.transfer(repo.cloud.get_remote_odb(), cache, {wanted}, cache_odb=cache, verify=True)
    if not _cached(cache, digest):
        raise VersioningError("no such version, neither in the remote nor in the cache")
    tree = Tree.load(cache, wanted)
    if _lacking(cache, tree):
        repo.cloud.transfer(repo.cloud.get_remote_odb(), cache, {wanted}, cache_odb=cache, verify=True, shallow=False)
    if lacking := _lacking(cache, tree):
        raise VersioningError(f"one that lacks {lacking} of {len(tree)} files, in the remote and in the cache")
    for key, _, entry in tree:
        target = folder.joinpath(*key)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cache.oid_to_path(entry.value), target)
        target.chmod(0o444)


def file_md5(path: Path) -> str:
    """Hash a file as DVC does.

    Args:
        path: The file.

    Returns:
        MD5, 32 hexadecimal digits.
    """
    with path.open("rb") as file:
        return file_digest(file, "md5").hexdigest()


def _check_kind(repo: Any, remote: str) -> None:
    """Refuse a URL of a kind that DVC does not know, which it takes for the name of a local folder."""
    scheme, separator, _ = remote.partition("://")
    if separator and scheme.lower() != "file" and repo.cloud.get_remote().fs.protocol == "local":
        raise VersioningError(f"an unknown kind of remote, {scheme}://")


def _lacking(cache: Any, tree: Any) -> int:
    return sum(not _cached(cache, entry.value) for _, _, entry in tree)


def _cached(cache: Any, oid: str) -> bool:
    """Tell whether the cache has an object; a damaged one is removed, so that it is fetched again."""
    path = Path(cache.oid_to_path(oid))
    if path.is_file() and file_md5(path) != oid.removesuffix(".dir"):
        path.unlink()
    return path.is_file()


def _configure(root: Path, remote: str) -> None:
    """Make the repository, or bring its configuration up to date; other settings in it are left as they are."""
    from dvc.config import Config

    if "://" not in remote:
        Path(remote).mkdir(parents=True, exist_ok=True)
    dvc = root / ".dvc"
    dvc.mkdir(exist_ok=True)
    ignored = root / ".dvcignore"
    if not ignored.exists():
        ignored.write_text(_IGNORED_BY_DVC, encoding="utf-8")
    wanted = {
        "no_scm": True,
        "analytics": False,
        "check_update": False,
        "remote": _REMOTE,
        "site_cache_dir": str(dvc / "tmp" / "site"),
    }
    config = Config(str(dvc))
    stated = config.load_one("repo")
    if wanted.items() <= stated["core"].items() and stated["remote"].get(_REMOTE, {}).get("url") == remote:
        return
    with config.edit("repo") as edited:
        edited["core"].update(wanted)
        edited["remote"].setdefault(_REMOTE, {})["url"] = remote


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect what DVC complains of instead of printing it, and hide its progress bars."""
    from dvc.ui import ui

    complaints: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = record.exc_info[1] if record.exc_info else None
            complaints.append(f"{record.getMessage()}{f': {cause}' if cause else ''}")

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    bars = [logging.getLogger(name) for name in _PROGRESS_LOGGERS]
    levels = [logger.level for logger in bars]
    was_quiet = ui.error_console.quiet
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [Collector(logging.ERROR)], False
        for logger in bars:
            logger.setLevel(logging.CRITICAL)
        ui.error_console.quiet = True
        yield complaints
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        for logger, level in zip(bars, levels, strict=True):
            logger.setLevel(level)
        ui.error_console.quiet = was_quiet
