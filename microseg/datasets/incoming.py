"""An incoming dataset: what has arrived in a lab's folder, and what is missing before it can be ingested."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from microseg.datasets.image_table import IMAGE_TABLE_FILE, image_key, image_name, read_image_table
from microseg.datasets.lab import LAB_FILE, LabMetadata, read_lab_metadata
from microseg.datasets.manifest import MANIFEST_FILE, read_manifest
from microseg.errors import LabError
from microseg.files import is_below
from microseg.slides.folder import is_system_file
from microseg.slides.images import IMAGE_SUFFIXES
from microseg.slides.parts import missing_parts
from microseg.slides.readers import slide_suffixes

__all__ = ["IncomingDataset", "read_incoming_folder", "refused_links"]

_TEMPORARY_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")
_NAMED = 3  # files that a message names


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

    def is_unchanged(self) -> bool:
        """Whether the modification times in its state are as they were; False where it has none."""
        paths = [Path(path) for path, _ in self.state[:-2]]
        return bool(paths) and _state(self.folder, paths) == self.state

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
        missing = refused_links(folder, listing.refused)
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


def refused_links(folder: Path, refused: Sequence[Path]) -> str:
    """Why links in a folder are not followed, in a sentence that names the first one."""
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
