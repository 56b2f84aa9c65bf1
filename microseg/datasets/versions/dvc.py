"""The calls to DVC, in one module: DVC does not promise a stable Python interface.

``repo`` is DVC's ``Repo``, from `opened`, which raises a `VersioningError` for every error of the calls inside it.
"""

import logging
import shutil
import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microseg.datasets.slides import SLIDES
from microseg.datasets.versions.file_hashes import file_md5, is_intact, remember
from microseg.errors import RemoteUnavailableError, SupersededError, VersioningError
from microseg.files import atomic_write, link_or_copy, write_text_file

__all__ = [
    "add",
    "check_write_access",
    "complete_remote",
    "opened",
    "push",
    "read_notes",
    "restore",
    "same_modes",
    "slide_paths",
    "write_note",
]

_REMOTE = "store"
_NOTES = "microseg"  # folder in the remote of what is not DVC's
_IGNORED_BY_DVC = "# only the labs' datasets are versioned\n/*\n!/labs\n/labs/.*\n"
_LOGGERS = ("dvc", "dvc_data", "dvc_objects")
_PROGRESS_LOGGERS = ("dvc.progress", "dvc_data.callbacks")  # above the level ERROR there are no progress bars
_one_at_a_time = threading.RLock()  # DVC's loggers and console are global


@contextmanager
def opened(root: Path, remote: str, aim: str) -> Iterator[Any]:
    """Open the DVC repository of a folder, created when missing, without Git.

    Args:
        root: The repository's folder; it may be inside a Git checkout or another DVC repository.
        remote: Absolute path or URL of the default remote.
        aim: Start of the message of an error: what was expected.

    Yields:
        DVC's ``Repo``.

    Raises:
        RemoteUnavailableError: The remote, the cache or the disk cannot be reached, read or written now.
        SupersededError: As raised inside.
        VersioningError: A version is incomplete, or the remote is of an unknown kind or misconfigured.
    """
    from dvc.config import ConfigError
    from dvc.fs import RemoteMissingDepsError
    from dvc.repo import Repo

    with _one_at_a_time, _quiet() as messages:
        try:
            _configure(root, remote)
            repo = Repo(str(root))
            try:
                _check_kind(repo, remote)
                yield repo
            finally:
                repo.close()
        except Exception as error:  # exceptions of DVC and of its remotes share no base class
            refused = isinstance(error, VersioningError)
            what = str(error) if refused else f"{type(error).__name__}: {error}"
            cause = f" ({messages[0]})" if messages else ""
            lasting = refused or isinstance(error, ImportError | ConfigError | RemoteMissingDepsError)
            superseded = isinstance(error, SupersededError)
            raise (SupersededError if superseded else VersioningError if lasting else RemoteUnavailableError)(
                f"{aim}, got {what}{cause}. Check that {remote} is the right remote, can be reached and written, and "
                "that DVC's extra for its kind is installed."
            ) from error


def add(repo: Any, folder: Path) -> tuple[str, int, int]:
    """Add a folder to the cache, as ``dvc add`` does; returns its digest, number of files, and size in bytes.

    Slides, which take gigabytes, are hard-linked into the cache where the file system can.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    cache = repo.cache.local
    for path in slide_paths(folder):
        _link_object(path, Path(cache.oid_to_path(oid := file_md5(path))))
        cache.state.save(str(path), cache.fs, HashInfo("md5", oid))  # DVC need not hash it again
    out = repo.add(str(folder), relink=False)[0].outs[0]
    for _, _, entry in Tree.load(cache, out.hash_info):
        remember(Path(cache.oid_to_path(entry.value)), entry.value)  # DVC has just hashed it
    return out.hash_info.value, out.meta.nfiles, out.meta.size


def push(repo: Any, digest: str) -> None:
    """Copy the missing files of a version to the remote, then check that the remote has every file.

    DVC's own push asks the remote only for the folder's list, and relies on its index for the files.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.status import status

    wanted, cache, remote = {HashInfo("md5", digest)}, repo.cache.local, repo.cloud.get_remote_odb(command="push")
    if remote.fs.protocol == "local":
        for oid in _slide_objects(cache, digest):
            _link_object(Path(cache.oid_to_path(oid)), Path(remote.oid_to_path(oid)))
    repo.cloud.transfer(cache, remote, wanted, cache_odb=cache, shallow=False)
    found = status(remote, wanted, cache_odb=cache, shallow=False)
    if found.missing:
        raise VersioningError(
            f"a remote that lacks {len(found.missing)} of {len(found.missing) + len(found.exists)} files after the push"
        )


def complete_remote(repo: Any, digests: Collection[str]) -> tuple[int, dict[str, int]]:
    """Copy the files of versions that the remote has lost from the cache, and find what neither of them has.

    Args:
        repo: The repository.
        digests: Digests of the versions.

    Returns:
        Number of files copied; and for each version that is not whole in the remote, the number of files it lacks.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    cache, remote = repo.cache.local, repo.cloud.get_remote_odb(command="push")
    versions: dict[str, set[str]] = {}  # the files of each, and its own list
    lost: dict[str, int] = {}
    for digest in digests:
        if not is_intact(index := Path(cache.oid_to_path(digest)), digest):
            repo.cloud.transfer(remote, cache, {HashInfo("md5", digest)}, cache_odb=cache, verify=True, shallow=True)
        if not is_intact(index, digest):
            lost[digest] = 1
            continue
        versions[digest] = {entry.value for _, _, entry in Tree.load(cache, HashInfo("md5", digest))} | {digest}
    wanted = set[str]().union(*versions.values())
    absent = wanted - set(remote.oids_exist(sorted(wanted)))
    kept = {oid for oid in absent if is_intact(Path(cache.oid_to_path(oid)), oid)}
    for oids in ({oid for oid in kept if not oid.endswith(".dir")}, {oid for oid in kept if oid.endswith(".dir")}):
        if oids:  # the list of a version last: with it the version counts as complete
            repo.cloud.transfer(cache, remote, {HashInfo("md5", oid) for oid in oids}, cache_odb=cache, shallow=True)
    absent -= set(remote.oids_exist(sorted(absent))) if absent else set()
    lost |= {digest: missing for digest, oids in versions.items() if (missing := len(oids & absent))}
    return len(kept - absent), lost


def read_notes(repo: Any, folder: str, known: Collection[str] = ()) -> dict[str, bytes]:
    """Read small files that microseg keeps in the remote, beside DVC's.

    Args:
        repo: The repository.
        folder: Folder below ``microseg/`` in the remote, with forward slashes.
        known: Paths of files that need not be read.

    Returns:
        Contents by path relative to the folder; empty for those known.
    """
    remote = repo.cloud.get_remote(command="push")
    root = remote.fs.join(remote.path, _NOTES, *folder.split("/"))
    if not remote.fs.exists(root):
        return {}
    found: dict[str, bytes] = {}
    for path in remote.fs.find(root):
        name = remote.fs.relpath(path, root).replace("\\", "/")
        if name.endswith(".json"):
            found[name] = b"" if name in known else remote.fs.cat_file(path)
    return found


def write_note(repo: Any, name: str, content: bytes) -> None:
    """Write a small file below ``microseg/`` in the remote; on a file system it appears whole or not at all."""
    remote = repo.cloud.get_remote(command="push")
    fs, path = remote.fs, remote.fs.join(remote.path, _NOTES, *name.split("/"))
    fs.makedirs(fs.parent(path), exist_ok=True)
    if fs.protocol != "local":
        fs.pipe_file(path, content)
        return
    with atomic_write(Path(path)) as part:
        part.write_bytes(content)


def check_write_access(repo: Any) -> None:
    """Write a small file to the remote, read it, and remove it."""
    store = repo.cloud.get_remote_odb(command="push")
    path, content = store.fs.join(store.path, f".microseg-{uuid.uuid4().hex}"), b"microseg"
    store.fs.makedirs(store.path, exist_ok=True)
    with store.fs.open(path, "wb") as file:
        file.write(content)
    try:
        with store.fs.open(path, "rb") as file:
            if (found := file.read()) != content:
                raise VersioningError(f"{found!r} instead of {content!r}, which was written")
    finally:
        store.fs.remove(path)


def restore(repo: Any, digest: str, folder: Path) -> None:
    """Copy a version's files out of the cache, after fetching from the remote what the cache lacks.

    Each file is verified before it is copied, unless it has been hashed already. ``folder`` is empty, and receives
    read-only files, and links to slides.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    cache, wanted = repo.cache.local, HashInfo("md5", digest)

    def fetch(*, shallow: bool) -> None:
        remote = repo.cloud.get_remote_odb()
        repo.cloud.transfer(remote, cache, {wanted}, cache_odb=cache, verify=True, shallow=shallow)

    index = Path(cache.oid_to_path(digest))
    if not is_intact(index, digest):
        fetch(shallow=True)
    if not is_intact(index, digest):
        raise VersioningError("no such version, neither in the remote nor in the cache")
    tree = Tree.load(cache, wanted)
    files = {folder.joinpath(*key): entry.value for key, _, entry in tree}

    def copy(path: Path) -> bool:
        cached = Path(cache.oid_to_path(files[path]))
        if not is_intact(cached, files[path]):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.relative_to(folder).parts[0] == SLIDES:
            link_or_copy(cached, path)
        else:
            shutil.copyfile(cached, path)
            path.chmod(0o444)
        remember(path, files[path])
        return True

    missing = [path for path in files if not copy(path)]
    if missing:
        fetch(shallow=False)
        missing = [path for path in missing if not copy(path)]
    if missing:
        raise VersioningError(f"one that lacks {len(missing)} of {len(tree)} files, in the remote and in the cache")


def slide_paths(folder: Path) -> list[Path]:
    """The files of slides in a dataset."""
    return [path for path in sorted((folder / SLIDES).rglob("*")) if path.is_file()]


@contextmanager
def same_modes(paths: Collection[Path]) -> Iterator[None]:
    """Keep the permissions of files, from which DVC takes those to write: they may be links to a lab's own slides."""
    modes = {path: path.stat().st_mode for path in paths if path.exists()}
    try:
        yield
    finally:
        for path, mode in modes.items():
            if path.stat().st_mode != mode:
                path.chmod(mode)


def _slide_objects(cache: Any, digest: str) -> list[str]:
    """Hashes of the files of slides in a version."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    return [entry.value for key, _, entry in Tree.load(cache, HashInfo("md5", digest)) if key[0] == SLIDES]


def _link_object(path: Path, target: Path) -> None:
    """Hard-link a file to where DVC keeps it, unless it is there, or the file system cannot; then DVC copies it."""
    if target.exists() or path.stat().st_dev != _existing(target).stat().st_dev:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as part:
        link_or_copy(path, part)
    remember(target, file_md5(path))


def _existing(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.exists())


def _check_kind(repo: Any, remote: str) -> None:
    """Reject a URL scheme that DVC does not know, which DVC treats as the name of a local folder."""
    scheme, separator, _ = remote.partition("://")
    if separator and scheme.lower() != "file" and repo.cloud.get_remote().fs.protocol == "local":
        raise VersioningError(f"an unknown kind of remote, {scheme}://")


def _utf8_config() -> Any:
    """DVC's ``Config``, which writes UTF-8: it reads that, but writes ASCII, so that a home with an accent fails."""
    from configobj import ConfigObj
    from dvc.config import Config, _pack_named

    class Utf8Config(Config):  # type: ignore[misc]
        def _save_config(self, level: str, conf_dict: Any) -> None:
            config = ConfigObj(_pack_named(conf_dict), encoding="utf-8")
            with Path(self.files[level]).open("wb") as file:
                config.write(file)

    return Utf8Config


def _configure(root: Path, remote: str) -> None:
    """Create the repository or update its configuration; other settings in it are not changed."""
    if "://" not in remote:
        Path(remote).mkdir(parents=True, exist_ok=True)
    dvc = root / ".dvc"
    dvc.mkdir(exist_ok=True)
    ignored = root / ".dvcignore"
    if not ignored.exists():
        write_text_file(ignored, _IGNORED_BY_DVC)
    wanted = {
        "no_scm": True,
        "analytics": False,
        "check_update": False,
        "remote": _REMOTE,
        "site_cache_dir": str(dvc / "tmp" / "site"),
    }
    config = _utf8_config()(str(dvc))
    stated = config.load_one("repo")
    if wanted.items() <= stated["core"].items() and stated["remote"].get(_REMOTE, {}).get("url") == remote:
        return
    with config.edit("repo") as edited:
        edited["core"].update(wanted)
        edited["remote"].setdefault(_REMOTE, {})["url"] = remote


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect DVC's error messages instead of printing them, and hide its progress bars."""
    from dvc.ui import ui

    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = record.exc_info[1] if record.exc_info else None
            messages.append(f"{record.getMessage()}{f': {cause}' if cause else ''}")

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
        yield messages
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        for logger, level in zip(bars, levels, strict=True):
            logger.setLevel(level)
        ui.error_console.quiet = was_quiet
