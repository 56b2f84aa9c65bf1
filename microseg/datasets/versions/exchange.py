"""The histories of several machines, exchanged through the remote, which has a note of each version.

``repo`` is DVC's ``Repo``, from `microseg.datasets.versions.repository.opened`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from microseg.datasets.versions.history import DatasetVersion, LocalHistory, merge, note_name, read_note
from microseg.datasets.versions.notes import read_notes, write_note

__all__ = ["append_version", "synchronize", "synchronize_all"]

_HISTORIES = "history"  # folder of notes, with a folder for each lab


def synchronize(local: LocalHistory, repo: Any, lab: str) -> tuple[DatasetVersion, ...]:
    """Exchange the history of a lab with the remote.

    Args:
        local: The histories on this machine.
        repo: The repository.
        lab: Name of the lab.

    Returns:
        The versions of all machines, the oldest first.

    Raises:
        VersioningError: The history on this machine or a note in the remote is damaged.
    """
    known = {note_name(version) for version in local.read(lab)}
    return _exchange(local, repo, lab, read_notes(repo, f"{_HISTORIES}/{lab}", known))


def synchronize_all(local: LocalHistory, repo: Any) -> None:
    """Exchange the histories of all labs with the remote; see `synchronize`."""
    known = {f"{lab}/{note_name(version)}" for lab in local.labs for version in local.read(lab)}
    notes: dict[str, dict[str, bytes]] = {lab: {} for lab in local.labs}
    for path, content in read_notes(repo, _HISTORIES, known).items():
        lab, _, name = path.partition("/")
        notes.setdefault(lab, {})[name] = content
    for lab, found in notes.items():
        _exchange(local, repo, lab, found)


def append_version(local: LocalHistory, repo: Any, lab: str, digest: str, files: int, size: int) -> DatasetVersion:
    """Append a version to the history of a lab, in the remote and here, unless it is the latest one.

    Args:
        local: The histories on this machine.
        repo: The repository.
        lab: Name of the lab.
        digest: Digest of the dataset.
        files: Number of its files.
        size: Size of them together, in bytes.

    Returns:
        The latest version.
    """
    history = local.read(lab)
    if history and history[-1].digest == digest:
        return history[-1]
    number = history[-1].number + 1 if history else 1
    version = DatasetVersion(lab, digest, files, size, datetime.now(UTC).isoformat(timespec="seconds"), number)
    _write(repo, lab, version)
    local.write(lab, (*history, version))
    return version


def _exchange(local: LocalHistory, repo: Any, lab: str, found: Mapping[str, bytes]) -> tuple[DatasetVersion, ...]:
    """Exchange a history, given the notes in the remote, whose contents are empty where this machine has them."""
    local.base(lab)  # recorded before the versions of other machines are known
    before = local.read(lab)
    names = {note_name(version): version for version in before}
    notes = [read_note(lab, name, content) for name, content in found.items() if name not in names]
    history = merge(before, (version for version in notes if version is not None))
    for name, version in names.items():
        if name not in found:
            _write(repo, lab, version)
    if history != before:
        local.write(lab, history)
    return history


def _write(repo: Any, lab: str, version: DatasetVersion) -> None:
    write_note(repo, f"{_HISTORIES}/{lab}/{note_name(version)}", json.dumps(asdict(version)).encode())
