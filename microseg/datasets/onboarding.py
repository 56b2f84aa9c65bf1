"""Incoming datasets in a drop folder, and the state of their onboarding.

Files arrive slowly, over a network share, in any order. So an incoming dataset is complete when it has metadata and
images and nothing in it has changed for a quiet period, by the clock of the observer: the times that a share gives its
files may be of another clock.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from microseg.datasets.checks import is_system_file
from microseg.datasets.lab import LAB_FILE, LabMetadata, check_lab_name, read_lab_metadata
from microseg.errors import LabError
from microseg.files import write_text_file
from microseg.slides.images import IMAGE_SUFFIXES
from microseg.slides.readers import slide_suffixes

__all__ = [
    "DropFolder",
    "IncomingDataset",
    "Onboarding",
    "OnboardingState",
    "OnboardingStore",
    "read_incoming_folder",
]

_TEMPORARY_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")

OnboardingState = Literal[
    "pending", "running", "awaiting_approval", "awaiting_production", "already_suited", "completed", "failed"
]
"""``pending``: no run has started. ``running``: a run is in progress, or was killed. ``awaiting_approval``: a person
has to decide on the candidate. ``awaiting_production``: there is no production model to adapt yet. ``already_suited``:
the production model suits the lab, and was not adapted."""


@dataclass(frozen=True)
class IncomingDataset:
    """Contents of an incoming folder at one time.

    Attributes:
        folder: Absolute path.
        metadata: Contents of ``lab.yaml``; None where it is missing or invalid.
        fingerprint: Hash of the names, sizes and times of its files.
        images: Number of image files in ``images/``.
        slides: Number of whole slides there, which will be rejected: networks are trained on images.
        missing: What is missing before it can be ingested; empty when it is complete.
    """

    folder: Path
    metadata: LabMetadata | None
    fingerprint: str
    images: int
    slides: int
    missing: str

    @property
    def lab(self) -> str:
        """Name of the lab, as stated in ``lab.yaml``, else the name of the folder."""
        return self.metadata.lab if self.metadata else self.folder.name

    @property
    def content(self) -> str:
        """Number of images, and of whole slides where there are any."""
        return f"images: {self.images}" + (f", whole slides: {self.slides}" if self.slides else "")


@dataclass(frozen=True)
class Onboarding:
    """State of the onboarding of a lab's latest incoming dataset.

    Attributes:
        lab: Name of the lab.
        folder: Folder of the incoming dataset.
        fingerprint: Fingerprint of the incoming dataset.
        state: See `OnboardingState`.
        updated_at: Time of the last change, UTC, ISO 8601.
        attempts: Number of runs started.
        candidate: Model version that was adapted; None while there is none.
        digest: Version of the lab's dataset; None before it is ingested.
        message: Explanation for people.
        flow_run_id: Prefect's id of the latest run.
    """

    lab: str
    folder: str
    fingerprint: str
    state: OnboardingState
    updated_at: str = ""
    attempts: int = 0
    candidate: int | None = None
    digest: str | None = None
    message: str = ""
    flow_run_id: str | None = None


def read_incoming_folder(folder: Path, previous: IncomingDataset | None = None) -> IncomingDataset:
    """Read the contents of an incoming folder.

    Args:
        folder: Folder of a lab.
        previous: What was read before; returned again while the folder has not changed.

    Raises:
        LabError: There is no such folder.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise LabError(f"{folder}: expected the folder of a lab's images, found none. Check the path.")
    hashed, slide_files = sha256(), slide_suffixes()
    unfinished, images, slides, slides_elsewhere = list[str](), 0, 0, 0
    for path in sorted(_files(folder)):
        try:
            status = path.stat()
        except OSError:  # moved in the meantime
            unfinished.append(path.name)
            continue
        name, suffix = path.relative_to(folder), path.suffix.lower()
        hashed.update(f"{name.as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        images += name.parts[0] == "images" and suffix in IMAGE_SUFFIXES
        if suffix in slide_files:
            slides += name.parts[0] == "images"
            slides_elsewhere += name.parts[0] not in ("images", "test")
        if path.name.lower().endswith(_TEMPORARY_SUFFIXES):
            unfinished.append(path.name)
    fingerprint = hashed.hexdigest()[:32]
    if previous is not None and (previous.folder, previous.fingerprint) == (folder, fingerprint) and not unfinished:
        return previous
    metadata, missing = None, ""
    try:
        metadata = read_lab_metadata(folder)
    except LabError as error:
        missing = str(error).partition("\n")[0] if (folder / LAB_FILE).is_file() else f"{LAB_FILE} is missing"
    if not images and not slides:
        missing = "images/ has no image yet"
        if slides_elsewhere:
            missing += f"; export regions of the whole slides elsewhere ({slides_elsewhere}) as PNG or TIFF into it"
    if unfinished:
        missing = f"{unfinished[0]} is being written"
    return IncomingDataset(folder, metadata, fingerprint, images, slides, missing)


class DropFolder:
    """A folder that is polled for incoming datasets.

    Args:
        path: The folder; it has one folder for each lab.
        quiet_period: Seconds for which nothing in an incoming dataset may change.
    """

    def __init__(self, path: Path, quiet_period: float) -> None:
        self.path = path
        self.quiet_period = quiet_period
        self._seen: dict[Path, tuple[IncomingDataset, float]] = {}  # with the time since it has not changed

    def poll(self, now: float) -> list[IncomingDataset]:
        """Read all incoming datasets.

        Args:
            now: Seconds of a monotonic clock.

        Returns:
            Those that have not changed for the quiet period, complete or not.
        """
        quiet = []
        folders = sorted(path for path in self.path.glob("*") if path.is_dir() and not path.name.startswith("."))
        self._seen = {folder: seen for folder, seen in self._seen.items() if folder in folders}
        for folder in folders:
            with suppress(LabError):  # moved away in the meantime
                before, since = self._seen.get(folder, (None, now))
                incoming = read_incoming_folder(folder, before)
                changed = before is None or before.fingerprint != incoming.fingerprint
                if changed or "being written" in incoming.missing:
                    since = now
                elif now - since >= self.quiet_period:
                    quiet.append(incoming)
                self._seen[folder] = incoming, since
        return quiet


class OnboardingStore:
    """States of the labs' onboardings, one JSON file for each lab.

    Args:
        folder: Folder of the files; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, lab: str) -> Onboarding | None:
        """State of the onboarding of a lab; None where it was never started.

        Args:
            lab: Name of the lab.

        Raises:
            LabError: The file is damaged, or of an older version.
        """
        path = self._folder / f"{check_lab_name(lab)}.json"
        try:
            return Onboarding(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise LabError(f"{path}: expected the state of an onboarding, got {error}. Remove the file.") from error

    def read_all(self) -> list[Onboarding]:
        """States of all labs."""
        found = (self.read(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [onboarding for onboarding in found if onboarding is not None]

    def write(self, onboarding: Onboarding, **changes: Any) -> Onboarding:
        """Write the state of an onboarding.

        Args:
            onboarding: The state.
            changes: Attributes to change before.

        Returns:
            The state that was written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        onboarding = replace(onboarding, **{"updated_at": now, **changes})
        path = self._folder / f"{check_lab_name(onboarding.lab)}.json"
        write_text_file(path, json.dumps(asdict(onboarding), indent=2) + "\n")
        return onboarding

    @contextmanager
    def lock(self, lab: str, *, wait: bool) -> Iterator[bool]:
        """Lock the onboarding of a lab for this process; a process that dies releases it.

        Args:
            lab: Name of the lab.
            wait: Wait until the lock is free.

        Yields:
            Whether it is locked now; False only where another process has it and ``wait`` is False.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / f".{check_lab_name(lab)}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_system_file(name)]
        yield from (Path(parent) / name for name in names if not is_system_file(name))
