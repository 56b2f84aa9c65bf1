"""The files of datasets in DVC's cache and remote, by their hashes: added, pushed, completed, restored.

DVC does not promise a stable Python interface: it is called here and in `microseg.datasets.versions.repository`, whose
`opened` gives ``repo``, DVC's ``Repo``, and raises a `VersioningError` for every error of the calls inside it.
"""

import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microseg.datasets.slides import SLIDES
from microseg.datasets.versions.file_hashes import file_md5, is_intact, remember
from microseg.errors import VersioningError
from microseg.files import atomic_write, link_or_copy

__all__ = ["add", "check_write_access", "complete_remote", "push", "restore", "same_modes", "slide_paths"]


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
