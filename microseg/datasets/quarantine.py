"""Quarantine: copies of rejected files, with the reasons; nothing in it is ever deleted."""

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from microseg.datasets.listing import RejectedFile
from microseg.escaping import csv_cell
from microseg.files import atomic_write, disk_full_error, file_sha256, link_or_copy, unsafe_reason

__all__ = ["REASONS_FILE", "quarantine_files"]

REASONS_FILE = "reasons.csv"

_LONGEST_NAME = 255  # bytes of a file name that file systems allow

_COLUMNS = ["file", "reason", "when", "sha256"]


def quarantine_files(
    source: Path,
    rejected: Iterable[RejectedFile],
    folder: Path,
    *,
    paths: Mapping[str, Path] | None = None,
    roots: Iterable[Path] = (),
) -> None:
    """Copy rejected files into the quarantine and add the reasons to ``reasons.csv``.

    A file that is there already with the same content and reason is not added again; one of the same name with other
    content is kept beside the first, with its hash in its name. The hash is empty where a file cannot be read, and of
    links that lead out of the incoming dataset, FIFOs and devices, which are not copied. Slides, which take gigabytes
    and are not edited, are linked instead of copied where the file system supports it.

    Args:
        source: Folder of the incoming dataset, which is not changed.
        rejected: Files of the incoming dataset, and why they were rejected.
        folder: Quarantine of the lab.
        paths: Files whose names are shown otherwise (`RejectedFile.file`) than they are.
        roots: Folders outside the incoming dataset that links may lead to.

    Raises:
        NoSpaceError: The disk is full. Nothing is lost: the incoming dataset still has the files.
        OSError: The quarantine cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reasons, roots = folder / REASONS_FILE, (source, *roots)
    lines: list[list[str]] = []
    if reasons.is_file():
        with reasons.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))[1:]
    known = {(line[0], line[1], line[3]) for line in lines if len(line) == len(_COLUMNS)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for each in rejected:
        path = (paths or {}).get(each.file, source / each.file)
        copy = shutil.copyfile if each.slide is None else link_or_copy
        digest = "" if unsafe_reason(path, roots) else _keep(path, folder / path.relative_to(source), copy)
        shown, reason = csv_cell(each.file), csv_cell(each.reason)
        if (shown, reason, digest) not in known:
            lines.append([shown, reason, now, digest])
    with atomic_write(reasons) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *lines])


def _keep(path: Path, kept: Path, copy: Callable[[Path, Path], object]) -> str:
    """Copy one file and return its SHA-256; empty when it cannot be read."""
    try:
        digest, size = file_sha256(path), path.stat().st_size
    except OSError:
        return ""
    if kept.exists() and not kept.samefile(path) and file_sha256(kept) != digest:
        end = f"~{digest[:12]}{kept.suffix}"
        stem = os.fsdecode(os.fsencode(kept.stem)[: _LONGEST_NAME - len(os.fsencode(end))])
        kept = kept.with_name(stem + end)
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (
            disk_full_error(
                kept, size if copy is shutil.copyfile else None, kept="The incoming dataset still has all its files."
            ),
            atomic_write(kept) as part,
        ):
            copy(path.resolve(), part)
    return digest
