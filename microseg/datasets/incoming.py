"""Incoming datasets in a drop folder: what has arrived, and whether it is complete.

Files arrive slowly, over a network share, in any order. So an incoming dataset is complete when it has metadata and
images, and every file that ``images.csv`` names, and nothing in it has changed for a quiet period, by the clock of the
observer: the times that a share gives its files may be of another clock.
"""

import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from microseg.datasets.image_table import IMAGE_TABLE_FILE, image_key, image_name, read_image_table
from microseg.datasets.lab import LAB_FILE, LabMetadata, read_lab_metadata
from microseg.datasets.manifest import MANIFEST_FILE, read_manifest
from microseg.errors import LabError, MicrosegError
from microseg.files import is_below
from microseg.slides.folder import is_system_file
from microseg.slides.images import IMAGE_SUFFIXES
from microseg.slides.parts import missing_parts
from microseg.slides.readers import slide_suffixes

__all__ = ["DropFolder", "IncomingDataset", "read_incoming_folder"]

_log = logging.getLogger(__name__)

_TEMPORARY_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")
_UNFINISHED_FACTOR = 10  # of quiet periods after which a temporary file is reported as left over
_NAMED = 3  # files that a message names

_SCAN_RATIO = 20  # of the pause between two scans of an unchanged folder to the time that a scan takes
_AGE_RATIO = 0.1  # of that pause to the time for which the folder has not changed
_LONGEST_PAUSE = 3600.0  # seconds


@dataclass(frozen=True)
class IncomingDataset:
    """Contents of an incoming folder at one time.

    Attributes:
        folder: Absolute path.
        metadata: Contents of ``lab.yaml``; None where it is missing or invalid.
        fingerprint: Hash of the names, sizes and times of its files.
        images: Number of image files in ``images/``.
        slides: Number of whole slides there.
        missing: What is missing before it can be ingested; empty when it is complete.
        unfinished: Whether a file in it is being written.
        state: Modification times of its folders and of the files that state something about it.
    """

    folder: Path
    metadata: LabMetadata | None
    fingerprint: str
    images: int
    slides: int
    missing: str
    unfinished: bool = False
    state: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)

    @property
    def lab(self) -> str:
        """Name of the lab, as stated in ``lab.yaml``, else the name of the folder."""
        return self.metadata.lab if self.metadata else self.folder.name

    @property
    def content(self) -> str:
        """Number of images, and of whole slides where there are any."""
        return f"images: {self.images}" + (f", whole slides: {self.slides}" if self.slides else "")


@dataclass
class _Listing:
    """All files below a folder: paths, what links lead to outside the allowed folders, folders that were read."""

    files: list[tuple[Path, os.stat_result]] = field(default_factory=list)
    refused: list[Path] = field(default_factory=list)
    moved: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def read_incoming_folder(
    folder: Path,
    previous: IncomingDataset | None = None,
    *,
    roots: Iterable[Path] = (),
    labs: Path | None = None,
) -> IncomingDataset:
    """Read the contents of an incoming folder.

    Args:
        folder: Folder of a lab.
        previous: What was read before; returned again while the folder has not changed.
        roots: Folders that links in it may lead to, beside itself.
        labs: Folder of all labs' datasets: images that a dataset has already need not arrive again.

    Raises:
        LabError: There is no such folder.
        OSError: The folder cannot be read now.
    """
    folder, roots = folder.absolute(), tuple(roots)
    if not folder.is_dir():
        raise LabError(f"{folder}: expected the folder of a lab's images, found none. Check the path.")
    listing = _list(folder, (folder, *roots))
    hashed, slide_files = sha256(), slide_suffixes()
    unfinished, images, slides, slides_elsewhere = [path.name for path in listing.moved], 0, 0, 0
    parts_missing = ""
    present, slide_folders = set[str](), set[str]()
    for path, status in sorted(listing.files):
        name, suffix = path.relative_to(folder), path.suffix.lower()
        hashed.update(os.fsencode(name.as_posix()) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        in_images = name.parts[0] == "images" and len(name.parts) > 1
        if in_images:
            present |= {image_key(image_name(part)) for part in (name.parts[1], path.name)}  # a slide may be a folder
        images += in_images and suffix in IMAGE_SUFFIXES
        if in_images and len(name.parts) > 2 and name.parts[1].lower().endswith(slide_files):
            slide_folders.add(name.parts[1])
        elif path.name.lower().endswith(slide_files):
            slides += in_images
            if in_images and (names := missing_parts(path)):
                parts_missing = f"{path.name} lacks {', '.join(names[:_NAMED])}: copy the slide with all of its files"
            slides_elsewhere += name.parts[0] not in ("images", "test")
        if path.name.lower().endswith(_TEMPORARY_SUFFIXES):
            unfinished.append(path.name)
    slides += len(slide_folders)
    for path in listing.refused:
        hashed.update(os.fsencode(path) + b"\0refused\n")
    fingerprint = hashed.hexdigest()[:32]
    state = _state(folder, listing.folders)
    if previous is not None and (previous.folder, previous.fingerprint) == (folder, fingerprint) and not unfinished:
        unchanged = replace(previous, state=state)
        if not (unchanged.missing and labs):  # the lab's dataset may have what was missing
            return unchanged
    metadata, missing = None, ""
    try:
        metadata = read_lab_metadata(folder, roots=roots)
        missing = _missing_files(folder, metadata.lab, present, labs, roots)
    except LabError as error:
        missing = str(error).partition("\n")[0] if (folder / LAB_FILE).is_file() else f"{LAB_FILE} is missing"
    except Exception as error:  # no content of these files may end the watching of the others
        missing = f"{LAB_FILE} and {IMAGE_TABLE_FILE} cannot be read ({type(error).__name__}: {error})"
    missing = missing or parts_missing
    if not images and not slides:
        missing = "images/ has no image yet"
        if slides_elsewhere:
            missing += f"; move the whole slides elsewhere ({slides_elsewhere}) into it"
    if listing.refused:
        missing = _refusal(folder, listing.refused)
    if unfinished:
        missing = f"{unfinished[0]} is being written; remove it if it was left over"
    return IncomingDataset(folder, metadata, fingerprint, images, slides, missing, bool(unfinished), state)


def _list(folder: Path, roots: tuple[Path, ...]) -> _Listing:
    """List a folder; links are followed where they lead to one of the roots."""
    listing, waiting, seen = _Listing(), [folder], set[tuple[int, int]]()
    while waiting:
        parent = waiting.pop()
        status = parent.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            continue
        seen.add((status.st_dev, status.st_ino))
        listing.folders.append(parent)
        with os.scandir(parent) as entries:
            found = [entry for entry in entries if not is_system_file(entry.name)]
        for entry in found:
            path = Path(entry.path)
            if entry.is_symlink() and not (path.exists() and is_below(path, roots)):
                listing.refused.append(path)
                continue
            try:
                status = entry.stat()
            except OSError:  # moved in the meantime
                listing.moved.append(path)
                continue
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            else:
                listing.files.append((path, status))
    return listing


def _state(folder: Path, folders: Iterable[Path]) -> tuple[tuple[str, int], ...]:
    """Modification times that change when files come, go or are renamed, or when what states the contents changes."""

    def entries() -> Iterator[tuple[str, int]]:
        for path in (*folders, folder / LAB_FILE, folder / IMAGE_TABLE_FILE):
            try:
                yield str(path), path.stat().st_mtime_ns
            except OSError:
                yield str(path), -1

    return tuple(entries())


def _missing_files(folder: Path, lab: str, present: set[str], labs: Path | None, roots: tuple[Path, ...]) -> str:
    """Which files that ``images.csv`` names are not there yet, in a sentence; empty when all are."""
    table = read_image_table(folder, roots)
    known = set(present)
    if labs is not None and (labs / lab / MANIFEST_FILE).is_file() and not table.keys() <= known:
        known |= {image_key(image_name(row.image)) for row in read_manifest(labs / lab)}
    absent = [entry.file for key, entry in table.items() if key not in known]
    if not absent:
        return ""
    named = ", ".join(absent[:_NAMED]) + (" …" if len(absent) > _NAMED else "")
    return (
        f"{IMAGE_TABLE_FILE} names {len(table)} files, of which {len(absent)} are not in images/ yet ({named}): "
        "copy them, or remove their lines"
    )


def _refusal(folder: Path, refused: list[Path]) -> str:
    path = min(refused)
    try:
        target = path.readlink()
    except OSError:
        target = Path("elsewhere")
    link = f"{path.relative_to(folder)} is a link to {target}"
    others = f"; so are {len(refused) - 1} others" if len(refused) > 1 else ""
    if not path.exists():
        return f"{link}, which is not there{others}: copy the files, or correct the link"
    return (
        f"{link}, outside the allowed folders{others}: copy the files, or add the folder to data.allowed_roots in "
        "params.yaml"
    )


@dataclass
class _Seen:
    """What is known of a folder from earlier polls, in seconds of the poll's clock."""

    incoming: IncomingDataset | None
    since: float
    next_scan: float
    error: str = ""


class DropFolder:
    """A folder that is polled for incoming datasets.

    A folder that has not changed for long is read rarely: new files and folders, and changes of ``lab.yaml`` and
    ``images.csv``, are noticed at once by the modification times of its folders; a file that is written again in place
    within an hour. What goes wrong with one folder does not concern the others.

    Args:
        path: The folder; it has one folder for each lab.
        quiet_period: Seconds for which nothing in an incoming dataset may change.
        roots: Folders that links in incoming datasets may lead to.
        labs: Folder of all labs' datasets.
    """

    def __init__(
        self, path: Path, quiet_period: float, *, roots: Iterable[Path] = (), labs: Path | None = None
    ) -> None:
        self.path = path
        self.quiet_period = quiet_period
        self._roots, self._labs = tuple(roots), labs
        self._seen: dict[Path, _Seen] = {}

    def poll(self, now: float) -> list[IncomingDataset]:
        """Read all incoming datasets that may have changed.

        Args:
            now: Seconds of a monotonic clock.

        Returns:
            Those that have not changed for the quiet period, complete or not.

        Raises:
            OSError: The drop folder itself cannot be read now.
        """
        with os.scandir(self.path) as entries:
            found = [entry for entry in entries if not is_system_file(entry.name)]
        folders = sorted(Path(entry.path) for entry in found if entry.is_dir())
        self._seen = {folder: seen for folder, seen in self._seen.items() if folder in folders}
        quiet = []
        for folder in folders:
            seen = self._seen.setdefault(folder, _Seen(None, now, now))
            try:
                incoming = self._poll(folder, seen, now)
            except Exception as error:  # each folder on its own: it is tried again at the next poll
                self._report(folder, seen, error)
            else:
                seen.error = ""
                if incoming is not None:
                    quiet.append(incoming)
        return quiet

    def _poll(self, folder: Path, seen: _Seen, now: float) -> IncomingDataset | None:
        before = seen.incoming
        if before and self._is_quiet(before, now - seen.since) and now < seen.next_scan and _unchanged(before):
            return before
        start = time.perf_counter()
        if folder.is_symlink() and not is_below(folder, (self.path, *self._roots)):
            incoming = IncomingDataset(folder.absolute(), None, "", 0, 0, _refusal(folder.parent, [folder]))
        else:
            incoming = read_incoming_folder(folder, before, roots=(self.path, *self._roots), labs=self._labs)
        took = time.perf_counter() - start
        if before is None or before.fingerprint != incoming.fingerprint:
            seen.since = now
        age = now - seen.since
        seen.incoming = incoming
        seen.next_scan = now + min(_LONGEST_PAUSE, max(_SCAN_RATIO * took, _AGE_RATIO * age))
        return incoming if before and self._is_quiet(incoming, age) else None

    def _is_quiet(self, incoming: IncomingDataset, age: float) -> bool:
        """Whether nothing has changed for long enough; a file that is being written is waited for longer."""
        return age >= self.quiet_period * (_UNFINISHED_FACTOR if incoming.unfinished else 1)

    def _report(self, folder: Path, seen: _Seen, error: Exception) -> None:
        """Log what is wrong with a folder, once."""
        text = str(error) if isinstance(error, MicrosegError) else f"{type(error).__name__}: {error}"
        if seen.error != text:
            seen.error = text
            _log.warning("%s cannot be read; it is tried again: %s", folder, text)


def _unchanged(incoming: IncomingDataset) -> bool:
    """Whether the modification times of a dataset's folders, and of what states its contents, are as they were."""
    paths = [Path(path) for path, _ in incoming.state[:-2]]
    return bool(paths) and _state(incoming.folder, paths) == incoming.state
