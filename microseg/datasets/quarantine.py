"""Quarantine: copies of rejected files, with the reasons; nothing in it is ever deleted."""

import csv
import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from microseg.datasets.checks import RejectedFile
from microseg.files import atomic_write, file_sha256, link_or_copy

__all__ = ["REASONS_FILE", "quarantine_files"]

REASONS_FILE = "reasons.csv"

_COLUMNS = ["file", "reason", "when", "sha256"]


def quarantine_files(source: Path, rejected: Iterable[RejectedFile], folder: Path) -> None:
    """Copy rejected files into the quarantine and add the reasons to ``reasons.csv``.

    A file that is there already with the same content and reason is not added again; one of the same name with other
    content is kept beside the first, with its hash in its name. The hash is empty where a file cannot be copied.
    Slides, which take gigabytes and are not edited, are linked instead of copied where the file system supports it.

    Args:
        source: Folder of the incoming dataset, which is not changed.
        rejected: Files of the incoming dataset, and why they were rejected.
        folder: Quarantine of the lab.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reasons = folder / REASONS_FILE
    lines: list[list[str]] = []
    if reasons.is_file():
        with reasons.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))[1:]
    known = {(line[0], line[1], line[3]) for line in lines if len(line) == len(_COLUMNS)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for each in rejected:
        copy = shutil.copyfile if each.slide is None else link_or_copy
        digest = _keep(source / each.file, folder / each.file, copy)
        if (each.file, each.reason, digest) not in known:
            lines.append([each.file, each.reason, now, digest])
    with atomic_write(reasons) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *lines])


def _keep(path: Path, kept: Path, copy: Callable[[Path, Path], object]) -> str:
    """Copy one file and return its SHA-256; empty when it cannot be copied."""
    if not path.is_file():
        return ""
    try:
        digest = file_sha256(path)
        if kept.exists() and not kept.samefile(path) and file_sha256(kept) != digest:
            kept = kept.with_name(f"{kept.stem}~{digest[:12]}{kept.suffix}")
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(kept) as part:
                copy(path.resolve(), part)
    except OSError:
        return ""
    return digest
