"""Notes: small JSON files that microseg keeps in the remote, beside DVC's objects.

``repo`` is DVC's ``Repo``, from `microseg.datasets.versions.repository.opened`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from microseg.files import atomic_write

__all__ = ["read_notes", "write_note"]

_NOTES = "microseg"  # their folder in the remote


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
