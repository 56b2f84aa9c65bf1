"""Deliveries that land in a folder: when all of one is there, and what became of it.

Files come slowly, over a network share, in any order. So a delivery counts as there when nothing of it has changed for
a while, by the clock of whoever looks: the times that a share gives its files may be of another clock.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from microseg.datasets.lab import LAB_FILE, check_lab_name, read_lab_metadata
from microseg.errors import LabError
from microseg.files import atomic_write
from microseg.slides.images import IMAGE_SUFFIXES
from microseg.slides.readers import slide_suffixes

__all__ = ["DropFolder", "IncomingDataset", "Onboarding", "OnboardingStore", "read_incoming_folder"]

_UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")
_JUNK = ("thumbs.db", "desktop.ini", "ehthumbs.db")


@dataclass(frozen=True)
class IncomingDataset:
    """What a folder holds now.

    Attributes:
        folder: its full path.
        lab: the lab's name, as ``lab.yaml`` says, else as the folder is called.
        fingerprint: of the names, sizes and times of its files.
        images: image files in ``images/``.
        slides: whole slides there, which will be refused with the reason: networks learn from images.
        lacks: what is missing before it can be taken over; empty when nothing is.
    """

    folder: Path
    lab: str
    fingerprint: str
    images: int
    slides: int
    lacks: str

    @property
    def content(self) -> str:
        """How many images, and how many slides where there are any."""
        return f"images: {self.images}" + (f", whole slides: {self.slides}" if self.slides else "")


@dataclass(frozen=True)
class Onboarding:
    """What became of a lab's last delivery.

    Attributes:
        lab: the lab's name.
        folder: of the delivery.
        fingerprint: of the delivery.
        state: ``announced``, ``running``, ``waiting`` (for a person), ``held`` (nothing in production yet), ``done`` or
            ``failed``.
        when: of the last change of state, UTC, ISO 8601.
        attempts: how often it was begun.
        version: the candidate made of it; None while there is none.
        digest: version of the lab's dataset; None before it is ingested.
        message: for people.
        run: that works on it, by its id in Prefect.
    """

    lab: str
    folder: str
    fingerprint: str
    state: str
    when: str = ""
    attempts: int = 0
    version: int | None = None
    digest: str | None = None
    message: str = ""
    run: str | None = None


def read_incoming_folder(folder: Path) -> IncomingDataset:
    """Look at a delivery.

    Args:
        folder: of the lab.

    Raises:
        LabError: there is no such folder.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise LabError(f"{folder}: expected the folder of a lab's images, found none. Check the path.")
    files = sorted(_files(folder))
    digest = sha256()
    unfinished, images, slides, elsewhere = list[str](), 0, 0, 0
    for path in files:
        try:
            facts = path.stat()
        except OSError:  # moved while we look
            unfinished.append(path.name)
            continue
        name = path.relative_to(folder)
        digest.update(f"{name.as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        images += name.parts[0] == "images" and path.suffix.lower() in IMAGE_SUFFIXES
        if path.suffix.lower() in slide_suffixes():
            slides += name.parts[0] == "images"
            elsewhere += name.parts[0] not in ("images", "test")
        if path.name.lower().endswith(_UNFINISHED):
            unfinished.append(path.name)
    lab, lacks = folder.name, ""
    try:
        lab = read_lab_metadata(folder).lab
    except LabError as error:
        lacks = str(error).partition("\n")[0]
        if not (folder / LAB_FILE).is_file():
            lacks = f"{LAB_FILE} is missing"
    if not images and not slides:
        lacks = "images/ has no image yet"
        if elsewhere:
            lacks += f", and of the whole slides elsewhere ({elsewhere}) regions are needed there, as PNG or TIFF"
    if unfinished:
        lacks = f"{unfinished[0]} is being written"
    return IncomingDataset(folder, lab, digest.hexdigest()[:32], images, slides, lacks)


class DropFolder:
    """Tells which deliveries in a folder have settled.

    Args:
        incoming: holds one folder for each lab.
        settle: seconds for which nothing of a delivery may change.
    """

    def __init__(self, incoming: Path, settle: float) -> None:
        self.incoming = incoming
        self.settle = settle
        self._since: dict[Path, tuple[str, float]] = {}

    def look(self, now: float) -> list[IncomingDataset]:
        """Look at all deliveries.

        Args:
            now: seconds of a clock that never goes back.

        Returns:
            Those that have not changed for long enough, complete or not.
        """
        settled = []
        folders = sorted(path for path in self.incoming.glob("*") if path.is_dir() and not path.name.startswith("."))
        self._since = {folder: seen for folder, seen in self._since.items() if folder in folders}
        for folder in folders:
            with suppress(LabError):  # moved away while we look
                delivery = read_incoming_folder(folder)
                seen = self._since.get(folder)
                if seen is None or seen[0] != delivery.fingerprint or "being written" in delivery.lacks:
                    self._since[folder] = (delivery.fingerprint, now)
                elif now - seen[1] >= self.settle:
                    settled.append(delivery)
        return settled


class OnboardingStore:
    """What became of each lab's last delivery, kept in files.

    Args:
        folder: holds one file for each lab; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, lab: str) -> Onboarding | None:
        """What is known of a lab's last delivery."""
        path = self._folder / f"{check_lab_name(lab)}.json"
        try:
            return Onboarding(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise LabError(f"{path}: expected what became of a delivery, got {error}. Remove the file.") from error

    def all(self) -> list[Onboarding]:
        """What is known of every lab."""
        found = (self.read(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [landing for landing in found if landing is not None]

    def write(self, landing: Onboarding, **changes: object) -> Onboarding:
        """Keep what became of a delivery, with the time of now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        landing = replace(landing, **{"when": now, **changes})  # type: ignore[arg-type]
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._folder / f"{check_lab_name(landing.lab)}.json") as part:
            part.write_text(json.dumps(asdict(landing), indent=2) + "\n", encoding="utf-8")
        return landing

    @contextmanager
    def claimed(self, lab: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lab for oneself while the block runs; a process that dies lets go of it.

        Args:
            lab: the lab's name.
            wait: until whoever holds it is done.

        Yields:
            Whether it is held now; False only where another holds it and nobody waits.
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
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower() not in _JUNK:
                yield Path(place) / name
