"""Versions of labs' datasets: a DVC repository of their own, and a remote that holds every version."""

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import md5
from pathlib import Path
from typing import Any

from filelock import FileLock

from microseg.datasets.ingest import lab_lock
from microseg.datasets.lab import check_lab_name
from microseg.datasets.versions.dvc import add, check_write_access, file_md5, opened, push, restore
from microseg.errors import VersioningError
from microseg.files import atomic_write

__all__ = ["DatasetStore", "DatasetVersion", "HistoryEntry", "code_commit"]


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a lab's dataset.

    Attributes:
        lab: The lab's name.
        digest: DVC's hash of the folder, 32 hexadecimal digits and ``.dir``.
        files: Number of files.
        bytes: Their size together.
    """

    lab: str
    digest: str
    files: int
    bytes: int

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise VersioningError(
                f"lab {self.lab}: expected a dataset's digest, 32 hexadecimal digits and '.dir', got {self.digest!r}. "
                "Take it from the lab's history."
            )

    def to_dict(self) -> dict[str, str | int]:
        """Give the same as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetVersion":
        """Make a version from what `to_dict` gave.

        Args:
            values: The dictionary.

        Returns:
            The version.

        Raises:
            VersioningError: A value is missing, superfluous or not of its kind.
        """
        try:
            return cls(
                lab=str(values["lab"]),
                digest=str(values["digest"]),
                files=int(values["files"]),
                bytes=int(values["bytes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise VersioningError(
                f"expected lab, digest, files and bytes of a dataset's version, got {values}."
            ) from error


@dataclass(frozen=True)
class HistoryEntry:
    """One commit of a lab's dataset.

    Attributes:
        digest: The version's digest.
        when: UTC, ISO 8601.
        files: Number of files.
        bytes: Their size together.
    """

    digest: str
    when: str
    files: int
    bytes: int


class DatasetStore:
    """The labs' datasets with all their versions.

    Below ``root`` lie ``labs/<lab>`` (the datasets as they are now), ``checkouts/<lab>/<digest>`` (versions brought
    back), ``history/<lab>.jsonl`` and DVC's own ``.dvc``, which is made at the first commit or checkout. One process
    at a time works in it; others wait.
    """

    def __init__(self, root: Path | str, remote: str | None) -> None:
        """Name the store; nothing is touched yet.

        Args:
            root: Folder of the store.
            remote: Where versions are pushed to: a folder, or any URL that DVC knows; None for ``root/remote``.
        """
        self.root = Path(root).expanduser().resolve()
        if remote is None:
            remote = str(self.root / "remote")
        is_url = re.match(r"[a-z][a-z0-9+.-]+://", remote, re.IGNORECASE) is not None
        self.remote = remote if is_url else str(Path(remote).expanduser().resolve())

    @property
    def labs(self) -> Path:
        """Folder of all labs' datasets."""
        return self.root / "labs"

    def commit(self, lab: str) -> DatasetVersion:
        """Make a version of a lab's dataset as it is now, and see that the remote has all of it.

        Args:
            lab: The lab's name.

        Returns:
            The version; the same one again when nothing has changed.

        Raises:
            VersioningError: There is no such dataset, or the remote cannot be reached or written.
        """
        folder = self.labs / check_lab_name(lab)
        with self._locked(), lab_lock(self.labs, lab):
            if not folder.is_dir() or not any(folder.iterdir()):
                raise VersioningError(
                    f"{folder}: expected the dataset of lab {lab}, found none. Prepare the lab first."
                )
            with opened(self.root, self.remote, f"lab {lab}: expected to push {folder} to {self.remote}") as repo:
                digest, files, size = add(repo, folder)
                push(repo, digest)
            version = DatasetVersion(lab, digest, files=files, bytes=size)
            self._remember(version)
        return version

    def current(self, lab: str) -> DatasetVersion | None:
        """Look up the version of a lab's dataset that was committed last.

        Args:
            lab: The lab's name.

        Returns:
            The version; None when none was committed.
        """
        history = self.history(lab)
        return DatasetVersion(lab, history[-1].digest, history[-1].files, history[-1].bytes) if history else None

    def history(self, lab: str) -> tuple[HistoryEntry, ...]:
        """List the commits of a lab's dataset, the oldest first.

        Args:
            lab: The lab's name.

        Returns:
            One entry for each change; committing an unchanged dataset adds none.

        Raises:
            VersioningError: The history file is damaged.
        """
        path = self._history_file(lab)
        if not path.is_file():
            return ()
        try:
            return tuple(HistoryEntry(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
        except (ValueError, TypeError) as error:
            raise VersioningError(
                f"{path}: expected one JSON object a line with digest, when, files and bytes, got {error}. "
                "Correct the line or remove it."
            ) from error

    def checkout(self, lab: str, digest: str) -> Path:
        """Bring back one version of a lab's dataset, byte by byte.

        It is taken from DVC's cache, else from the remote, and its hash is computed anew, also when it was brought
        back before.

        Args:
            lab: The lab's name.
            digest: The version's digest.

        Returns:
            A folder with read-only files, shared by everyone who asks for this version.

        Raises:
            VersioningError: Neither cache nor remote has the whole version.
        """
        folder = self.root / "checkouts" / check_lab_name(lab) / DatasetVersion(lab, digest, 0, 0).digest
        with self._locked():
            if folder.is_dir() and _folder_digest(folder) == digest:
                return folder
            for left in folder.parent.glob(".*.part"):
                shutil.rmtree(left)
            part = folder.parent / f".{uuid.uuid4().hex}.part"
            try:
                part.mkdir(parents=True)
                with opened(self.root, self.remote, f"lab {lab}: expected version {digest} in {self.remote}") as repo:
                    restore(repo, digest, part)
                if (found := _folder_digest(part)) != digest:
                    raise VersioningError(
                        f"lab {lab}: expected version {digest} from {self.remote}, got files that make {found}. "
                        "The remote or the cache is damaged: restore it from a backup, or commit the dataset again."
                    )
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return folder

    def ensure_present(self, lab: str) -> bool:
        """See that a lab's dataset is there where a version of it was committed, as on a new machine it is not.

        Args:
            lab: The lab's name.

        Returns:
            Whether it had to be brought back.

        Raises:
            VersioningError: It has to, and neither cache nor remote has the whole version.
        """
        folder = self.labs / check_lab_name(lab)
        current = self.current(lab)
        if current is None or folder.is_dir():
            return False
        version = self.checkout(lab, current.digest)
        with self._locked(), lab_lock(self.labs, lab):
            if folder.is_dir():
                return False
            new = self.labs / f".{lab}.new"  # which the next to lock the lab clears, should this be killed
            for file in version.rglob("*"):
                if file.is_file():
                    copy = new / file.relative_to(version)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)  # without the version's being read-only
            new.rename(folder)
        return True

    def check_remote(self) -> None:
        """See that the remote can be reached and written, as the next commit will.

        Raises:
            VersioningError: It cannot.
        """
        with self._locked(), opened(self.root, self.remote, f"expected a remote to write to at {self.remote}") as repo:
            check_write_access(repo)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VersioningError(f"{self.root}: expected a writable folder for datasets, got: {error}.") from error
        with FileLock(self.root / ".lock"):
            yield

    def _remember(self, version: DatasetVersion) -> None:
        history = self.history(version.lab)
        if history and history[-1].digest == version.digest:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entries = [*history, HistoryEntry(version.digest, now, version.files, version.bytes)]
        path = self._history_file(version.lab)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as part:
            part.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries), encoding="utf-8")

    def _history_file(self, lab: str) -> Path:
        return self.root / "history" / f"{check_lab_name(lab)}.jsonl"


def _folder_digest(folder: Path) -> str:
    """Compute DVC's hash of a folder without DVC: the MD5 of the JSON list of its files and their MD5."""
    files = [
        {"md5": file_md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    files.sort(key=lambda file: tuple(file["relpath"].split("/")))
    return f"{md5(json.dumps(files, sort_keys=True).encode()).hexdigest()}.dir"


_DIGEST = re.compile(r"[0-9a-f]{32}\.dir", re.ASCII)


def code_commit(root: Path) -> str:
    """Find the commit of the code in a folder.

    Args:
        root: Any folder of a git checkout.

    Returns:
        The commit, followed by ``-dirty`` when a tracked file differs from it; ``unknown`` where there is no git, no
        checkout or no commit.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return "unknown"
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit if changes == "" else f"{commit}-dirty"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
