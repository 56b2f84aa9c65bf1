"""Versions of labs' datasets: a DVC repository, and a remote that has every version."""

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

from filelock import FileLock

from microseg.datasets.ingest import lab_lock
from microseg.datasets.lab import check_lab_name
from microseg.datasets.versions.dvc import add, check_write_access, file_md5, opened, push, restore
from microseg.errors import VersioningError
from microseg.files import write_text_file

__all__ = ["DatasetStore", "DatasetVersion", "code_commit"]


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a lab's dataset.

    Attributes:
        lab: Name of the lab.
        digest: DVC's hash of the folder, 32 hexadecimal digits and ``.dir``.
        files: Number of files.
        bytes: Size of all files together.
        committed_at: Time of the commit, UTC, ISO 8601.
    """

    lab: str
    digest: str
    files: int
    bytes: int
    committed_at: str


_DIGEST = re.compile(r"[0-9a-f]{32}\.dir", re.ASCII)


class DatasetStore:
    """The labs' datasets with all their versions.

    Below ``root`` are ``labs/<lab>`` (the current datasets), ``checkouts/<lab>/<digest>`` (versions that were checked
    out), ``history/<lab>.jsonl`` and DVC's own ``.dvc``, which is created at the first commit or checkout. One process
    at a time works in it; others wait.

    Args:
        root: Folder of the store; nothing is created yet.
        remote: Where versions are pushed to: a folder, or any URL that DVC supports; None for ``root/remote``.
    """

    def __init__(self, root: Path | str, remote: str | None) -> None:
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
        """Commit the current dataset of a lab as a version, and push all of it to the remote.

        Args:
            lab: Name of the lab.

        Returns:
            The version; the same one again when nothing has changed.

        Raises:
            VersioningError: The lab has no dataset, or the remote cannot be reached or written.
        """
        folder = self.labs / check_lab_name(lab)
        with self._locked(), lab_lock(self.labs, lab):
            if not folder.is_dir() or not any(folder.iterdir()):
                raise VersioningError(f"{folder}: expected the dataset of lab {lab}, found none. Ingest the lab first.")
            with opened(self.root, self.remote, f"lab {lab}: expected to push {folder} to {self.remote}") as repo:
                digest, files, size = add(repo, folder)
                push(repo, digest)
            return self._record(lab, digest, files, size)

    def current(self, lab: str) -> DatasetVersion | None:
        """Latest committed version of a lab's dataset; None when none was committed.

        Args:
            lab: Name of the lab.
        """
        history = self.history(lab)
        return history[-1] if history else None

    def history(self, lab: str) -> tuple[DatasetVersion, ...]:
        """Commits of a lab's dataset, the oldest first.

        Args:
            lab: Name of the lab.

        Returns:
            One version for each change; committing an unchanged dataset adds none.

        Raises:
            VersioningError: The history file is damaged.
        """
        path = self._history_file(lab)
        if not path.is_file():
            return ()
        try:
            return tuple(DatasetVersion(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
        except (ValueError, TypeError) as error:
            raise VersioningError(f"{path}: expected one JSON object a line, got {error}. Correct the line.") from error

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
        if not _DIGEST.fullmatch(digest):
            raise VersioningError(
                f"lab {lab}: expected a dataset's digest, 32 hexadecimal digits and '.dir', got {digest!r}. "
                "Take it from the lab's history."
            )
        folder = self.root / "checkouts" / check_lab_name(lab) / digest
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
                        f"lab {lab}: expected version {digest} from {self.remote}, got files with the digest {found}. "
                        "The remote or the cache is damaged: restore it from a backup, or commit the dataset again."
                    )
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return folder

    def ensure_present(self, lab: str) -> bool:
        """Restore the current dataset of a lab where it is missing, as on a new machine.

        Args:
            lab: Name of the lab.

        Returns:
            Whether it was restored; False where it is present, or was never committed.

        Raises:
            VersioningError: Neither cache nor remote has the whole version.
        """
        folder = self.labs / check_lab_name(lab)
        current = self.current(lab)
        if current is None or folder.is_dir():
            return False
        version = self.checkout(lab, current.digest)
        with self._locked(), lab_lock(self.labs, lab) as new:
            if folder.is_dir():
                return False
            shutil.copytree(version, new, copy_function=shutil.copyfile)  # files that can be written
            new.rename(folder)
        return True

    def check_remote(self) -> None:
        """Check that the remote can be reached and written, as the next commit will.

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

    def _record(self, lab: str, digest: str, files: int, size: int) -> DatasetVersion:
        """Append a version to the history, unless it is the latest one."""
        history = self.history(lab)
        if history and history[-1].digest == digest:
            return history[-1]
        version = DatasetVersion(lab, digest, files, size, datetime.now(UTC).isoformat(timespec="seconds"))
        lines = [json.dumps(asdict(entry)) + "\n" for entry in (*history, version)]
        write_text_file(self._history_file(lab), "".join(lines))
        return version

    def _history_file(self, lab: str) -> Path:
        return self.root / "history" / f"{check_lab_name(lab)}.jsonl"


def _folder_digest(folder: Path) -> str:
    """DVC's hash of a folder, computed without DVC: the MD5 of the JSON list of its files and their MD5."""
    files = [
        {"md5": file_md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    files.sort(key=lambda file: tuple(file["relpath"].split("/")))
    return f"{md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"


def code_commit(root: Path) -> str:
    """Git commit of the code in a folder.

    Args:
        root: Any folder of a Git checkout.

    Returns:
        The commit, followed by ``-dirty`` when a tracked file differs from it; ``unknown`` without Git, a
        checkout or a commit.
    """
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
