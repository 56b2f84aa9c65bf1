"""The manifest of a lab's dataset: one line an image, in ``manifest.csv``."""

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from microseg.errors import LabError
from microseg.files import atomic_write

__all__ = ["MANIFEST_FILE", "ManifestRow", "Split", "read_manifest", "write_manifest"]

MANIFEST_FILE = "manifest.csv"

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class ManifestRow:
    """One image of a lab's dataset.

    Attributes:
        image: Path in the lab's folder, ``images/<name>.png``.
        mask: Path in the lab's folder, ``masks/<name>.png``; None for an image without labels.
        group: Patient or slide; images of one group are always in one split.
        split: ``train``, ``val`` or ``test``.
        width: Pixels.
        height: Pixels.
        mpp: Microns per pixel; None when unknown.
        sha256: `microseg.slides.images.image_digest` of the image.
    """

    image: str
    mask: str | None
    group: str
    split: Split
    width: int
    height: int
    mpp: float | None
    sha256: str


_COLUMNS = tuple(field.name for field in fields(ManifestRow))


def read_manifest(folder: Path | str) -> tuple[ManifestRow, ...]:
    """Read ``manifest.csv`` of a lab's dataset.

    Args:
        folder: The lab's folder.

    Returns:
        The rows, in the file's order.

    Raises:
        LabError: The file is missing, or a line is not as `write_manifest` writes it.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise LabError(f"{path}: expected the dataset's manifest, found none. Prepare the lab's dataset first.")
    rows: list[ManifestRow] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            if tuple(lines.fieldnames or ()) != _COLUMNS:
                raise LabError(
                    f"{path}: expected the columns {','.join(_COLUMNS)}, got {','.join(lines.fieldnames or ())}. "
                    "Prepare the lab's dataset again."
                )
            for values in lines:
                try:
                    rows.append(_parse(values))
                except (ValueError, TypeError, KeyError) as error:
                    raise LabError(
                        f"{path}, line {lines.line_num}: {error}. Prepare the lab's dataset again."
                    ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise LabError(f"{path}: expected CSV in UTF-8, got: {error}. Prepare the lab's dataset again.") from error
    if len({row.image for row in rows}) < len(rows):
        raise LabError(f"{path}: expected each image once, got one twice. Prepare the lab's dataset again.")
    return tuple(rows)


def write_manifest(folder: Path | str, rows: Iterable[ManifestRow]) -> None:
    """Write ``manifest.csv`` into a lab's folder, whole or not at all.

    Args:
        folder: An existing folder.
        rows: What to write, in this order.
    """
    with atomic_write(Path(folder) / MANIFEST_FILE) as part, part.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(_COLUMNS)
        lines.writerows(["" if value is None else value for value in astuple(row)] for row in rows)


def _parse(values: dict[str, str]) -> ManifestRow:
    if None in values or None in values.values():
        raise ValueError(f"expected {len(_COLUMNS)} values, got another number")
    split, digest = values["split"], values["sha256"]
    if split not in get_args(Split):
        raise ValueError(f"expected split train, val or test, got {split!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"expected sha256 of 64 hexadecimal digits, got {digest!r}")
    mpp = float(values["mpp"]) if values["mpp"] else None
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise ValueError(f"expected mpp above 0 or nothing, got {mpp}")
    width, height = int(values["width"]), int(values["height"])
    if min(width, height) < 1 or not values["group"]:
        raise ValueError("expected width and height above 0, and a group")
    return ManifestRow(
        image=_inside(values["image"], "images"),
        mask=_inside(values["mask"], "masks") if values["mask"] else None,
        group=values["group"],
        split=split,  # type: ignore[arg-type]
        width=width,
        height=height,
        mpp=mpp,
        sha256=digest,
    )


def _inside(path: str, folder: str) -> str:
    """Accept only ``<folder>/<name>``, so that no manifest can point outside its dataset."""
    if PurePosixPath(path).parts != (folder, PurePosixPath(path).name) or PurePosixPath(path).name == "..":
        raise ValueError(f"expected {folder}/<file name>, got {path!r}")
    return path
