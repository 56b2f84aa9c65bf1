"""Versions of labs' datasets: a DVC repository, and a remote that has every version."""

import json
import logging
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from microseg.datasets.dataset_folder import lab_lock, replace_folder
from microseg.datasets.lab import check_lab_name
from microseg.datasets.slides import SLIDES
from microseg.datasets.versions.exchange import append_version, synchronize, synchronize_all
from microseg.datasets.versions.file_hashes import folder_digest, known_hashes
from microseg.datasets.versions.history import DIGEST, DatasetVersion, LocalHistory
from microseg.datasets.versions.notes import read_notes, write_note
from microseg.datasets.versions.objects import (
    add,
    check_write_access,
    complete_remote,
    push,
    restore,
    same_modes,
    slide_paths,
)
from microseg.datasets.versions.repository import opened
from microseg.errors import SupersededError, VersioningError
from microseg.files import link_or_copy
from microseg.locks import lock_file
from microseg.parsing import parse_json

__all__ = ["DatasetStore"]

_log = logging.getLogger(__name__)


class DatasetStore:
    """The labs' datasets with all their versions.

    Below ``root`` are ``labs/<lab>`` (the current datasets), ``checkouts/<lab>/<digest>`` (versions that were checked
    out), ``history/<lab>.jsonl`` and DVC's own ``.dvc``, which is created at the first commit or checkout. One process
    at a time works in it; others wait. Stores of several machines with the same remote share the histories.

    Args:
        root: Folder of the store; nothing is created yet.
        remote: Where versions are pushed to: a folder, or any URL that DVC supports; None for ``root/remote``.
    """

    def __init__(self, root: Path | str, remote: str | None) -> None:
        self.root = Path(root).expanduser().resolve()
        if remote is None:
            remote = str(self.root / "remote")
        self._local = LocalHistory(self.root / "history")
        is_url = re.match(r"[a-z][a-z0-9+.-]+://", remote, re.IGNORECASE) is not None
        self.remote = remote if is_url else str(Path(remote).expanduser().resolve())

    @property
    def labs(self) -> Path:
        """Folder of all labs' datasets."""
        return self.root / "labs"

    def commit(self, lab: str) -> DatasetVersion:
        """Commit the current dataset of a lab as a version, and push all of it to the remote.

        What the remote has lost of earlier versions, of all labs, is copied there again as far as the cache has it.

        Args:
            lab: Name of the lab.

        Returns:
            The version; the same one again when nothing has changed.

        Raises:
            VersioningError: The lab has no dataset, or the remote cannot be reached or written.
            SupersededError: Another machine has committed a version meanwhile.
        """
        folder = self.labs / check_lab_name(lab)
        with self._locked(), lab_lock(self.labs, lab):
            if not folder.is_dir() or not any(folder.iterdir()):
                raise VersioningError(f"{folder}: expected the dataset of lab {lab}, found none. Ingest the lab first.")
            aim = f"lab {lab}: expected to push {folder} to {self.remote}"
            with same_modes(slide_paths(folder)), opened(self.root, self.remote, aim) as repo:
                base = self._local.base(lab)
                history = synchronize(self._local, repo, lab)
                digest, files, size = add(repo, folder)
                if history and history[-1].digest not in (base, digest):
                    raise SupersededError(
                        f"a dataset that another machine has changed: it is version {history[-1].number} now "
                        f"({history[-1].digest}), committed {history[-1].committed_at}. Ingest again: the images of "
                        "both are kept"
                    )
                push(repo, digest)
                version = append_version(self._local, repo, lab, digest, files, size)
                self._local.set_base(lab, digest)
                self._complete(repo)
        return version

    def refresh(self, lab: str) -> tuple[DatasetVersion, ...]:
        """Exchange the history of a lab with the remote, so that versions of other machines are known here.

        Args:
            lab: Name of the lab.

        Returns:
            The history, the oldest version first.

        Raises:
            RemoteUnavailableError: The remote cannot be reached or written.
        """
        check_lab_name(lab)
        with self._opened(f"lab {lab}: expected its history in {self.remote}") as repo:
            return synchronize(self._local, repo, lab)

    def refresh_all(self) -> tuple[str, ...]:
        """Exchange the histories of all labs with the remote.

        Returns:
            Names of all labs.

        Raises:
            RemoteUnavailableError: The remote cannot be reached or written.
        """
        with self._opened(f"expected histories of labs in {self.remote}") as repo:
            synchronize_all(self._local, repo)
        return self.known_labs

    @property
    def known_labs(self) -> tuple[str, ...]:
        """Names of all labs that have a history on this machine."""
        return self._local.labs

    def complete_remote(self) -> tuple[int, dict[tuple[str, str], int]]:
        """Copy what the remote has lost from the cache, and find what neither of them has.

        Returns:
            Number of files that were copied; and number of files that are lacking, by lab and digest.

        Raises:
            RemoteUnavailableError: The remote cannot be reached or written.
        """
        self.refresh_all()
        with self._opened(f"expected all versions in {self.remote}") as repo:
            return self._complete(repo)

    def machines(self, name: str, facts: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Record facts on this machine in the remote, and read those of all machines that use it.

        Args:
            name: Name of this machine and home: letters, digits, ``-._``.
            facts: What the machines should agree on, such as the address of MLflow.

        Returns:
            The facts of each machine, this one included.

        Raises:
            RemoteUnavailableError: The remote cannot be reached or written.
        """
        found: dict[str, dict[str, str]] = {}
        with self._opened(f"expected notes on machines in {self.remote}") as repo:
            write_note(repo, f"machines/{name}.json", json.dumps(dict(facts)).encode())
            for path, content in read_notes(repo, "machines").items():
                with suppress(ValueError, TypeError, AttributeError):  # of another version of microseg
                    found[path.removesuffix(".json")] = {str(key): str(it) for key, it in parse_json(content).items()}
        return found

    def _complete(self, repo: Any) -> tuple[int, dict[tuple[str, str], int]]:
        labs = {version.digest: lab for lab in self._local.labs for version in self._local.read(lab)}
        copied, lost = complete_remote(repo, labs)
        if copied:
            _log.warning("%s lacked %d files of earlier versions: they were copied there again.", self.remote, copied)
        for digest, count in lost.items():
            _log.warning("%s lacks %d files of version %s of %s.", self.remote, count, digest, labs[digest])
        return copied, {(labs[digest], digest): count for digest, count in lost.items()}

    def history(self, lab: str) -> tuple[DatasetVersion, ...]:
        """Commits of a lab's dataset that this machine knows, the oldest first; see `refresh`.

        Args:
            lab: Name of the lab.

        Returns:
            One version for each change; committing an unchanged dataset adds none.

        Raises:
            VersioningError: The history file is damaged.
        """
        return self._local.read(lab)

    def checkout(self, lab: str, digest: str) -> Path:
        """Check out one version of a lab's dataset, verified file by file.

        Files come from DVC's cache, else from the remote. Within a process, a file that has not changed since it was
        hashed is not hashed again.

        Args:
            lab: Name of the lab.
            digest: Digest of the version.

        Returns:
            A folder with read-only files, shared by all callers.

        Raises:
            VersioningError: Neither cache nor remote has the whole version.
        """
        if not DIGEST.fullmatch(digest):
            raise VersioningError(
                f"lab {lab}: expected a dataset's digest, 32 hexadecimal digits and '.dir', got {digest!r}. "
                "Take it from the lab's history."
            )
        folder = self.root / "checkouts" / check_lab_name(lab) / digest
        with self._locked():
            if folder.is_dir() and folder_digest(folder) == digest:
                return folder
            for left in folder.parent.glob(".*.part"):
                shutil.rmtree(left)
            part = folder.parent / f".{uuid.uuid4().hex}.part"
            try:
                part.mkdir(parents=True)
                with opened(self.root, self.remote, f"lab {lab}: expected version {digest} in {self.remote}") as repo:
                    restore(repo, digest, part)
                if (found := folder_digest(part)) != digest:
                    raise VersioningError(
                        f"lab {lab}: expected version {digest} from {self.remote}, got files with the digest {found}. "
                        "The remote or the cache is damaged: restore it from a backup, or commit the dataset again."
                    )
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return folder

    def ensure_current(self, lab: str) -> bool:
        """Restore the latest version of a lab's dataset where it is missing, or where another machine committed it.

        Changes that were never committed are moved to ``uncommitted/`` then: the next ingest adds them again.

        Args:
            lab: Name of the lab.

        Returns:
            Whether it was restored; False where it is current, or was never committed.

        Raises:
            RemoteUnavailableError: The remote cannot be reached.
            VersioningError: Neither cache nor remote has the whole version.
        """
        folder = self.labs / check_lab_name(lab)
        history = self.refresh(lab)
        if not history or (folder.is_dir() and self._local.base(lab) == history[-1].digest):
            return False
        version = self.checkout(lab, history[-1].digest)
        with self._locked(), lab_lock(self.labs, lab) as new:
            if folder.is_dir() and self._local.base(lab) == history[-1].digest:
                return False
            shutil.copytree(version, new, copy_function=partial(_copy_or_link, version))
            if folder.is_dir() and folder_digest(folder) not in {it.digest for it in history}:
                aside = self.root / "uncommitted" / f"{lab}-{uuid.uuid4().hex[:8]}"
                aside.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(aside)
                _log.warning("Another machine has changed lab %s; uncommitted changes were moved to %s.", lab, aside)
            replace_folder(folder, new)
            self._local.set_base(lab, history[-1].digest)
        return True

    def check_remote(self) -> None:
        """Check that the remote can be reached and written, as the next commit will.

        Raises:
            VersioningError: It cannot.
        """
        with self._opened(f"expected a remote to write to at {self.remote}") as repo:
            check_write_access(repo)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VersioningError(f"{self.root}: expected a writable folder for datasets, got: {error}.") from error
        with lock_file(self.root / ".lock"), known_hashes(self.root / "hashes.json"):
            yield

    @contextmanager
    def _opened(self, aim: str) -> Iterator[Any]:
        with self._locked(), opened(self.root, self.remote, aim) as repo:
            yield repo


def _copy_or_link(version: Path, path: str, target: str) -> None:
    """Copy a file of a version so that it can be written; a slide, which never changes, is linked."""
    slide = Path(path).relative_to(version).parts[0] == SLIDES
    (link_or_copy if slide else shutil.copyfile)(Path(path), Path(target))
