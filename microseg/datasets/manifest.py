"""``manifest.csv``, the table of a lab's dataset: one line for each image, and for each field of a slide."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, TypeAdapter, ValidationError

from microseg.datasets.fields import Box
from microseg.datasets.image_table import image_name
from microseg.errors import LabError
from microseg.files import atomic_write

__all__ = ["MANIFEST_FILE", "ManifestRow", "Split", "read_manifest", "write_manifest"]

MANIFEST_FILE = "manifest.csv"

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class ManifestRow:
    """One image of a lab's dataset, or one field of a slide.

    Attributes:
        image: Path in the dataset's folder, ``images/<name>.png`` or ``slides/<file>``.
        mask: Path in the dataset's folder, ``masks/<name>.png``; None for an unlabelled image.
        group: Patient or slide; images of one group are always in one split.
        split: ``train``, ``val`` or ``test``.
        width: Pixels.
        height: Pixels.
        mpp: Microns per pixel; None when unknown.
        sha256: `microseg.slides.images.image_digest` of the image; of a slide `source_sha256`.
        x: Left edge of a field of a slide, in pixels of its finest level; None for an image.
        y: Upper edge of a field.
        cluster: Cluster of appearance of a field in its slide.
    """

    image: Annotated[str, StringConstraints(pattern=r"^(images/[^/]+\.png|slides/[^/]+)$")]
    mask: Annotated[str, StringConstraints(pattern=r"^masks/[^/]+\.png$")] | None
    group: Annotated[str, StringConstraints(min_length=1)]
    split: Split
    width: PositiveInt
    height: PositiveInt
    mpp: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    x: NonNegativeInt | None = None
    y: NonNegativeInt | None = None
    cluster: NonNegativeInt | None = None

    @property
    def name(self) -> str:
        """Name of the image or field, of which there is one in a dataset."""
        if self.x is None:
            return Path(self.image).stem
        return f"{image_name(self.image)}_{self.x}_{self.y}_{self.width}x{self.height}"

    @property
    def slide(self) -> str | None:
        """Name of the file of a field's slide; None for an image."""
        return None if self.x is None else self.image.rpartition("/")[2]

    @property
    def box(self) -> Box:
        """Where a field is in its slide."""
        x, y = self.x or 0, self.y or 0
        return x, y, x + self.width, y + self.height


_COLUMNS = tuple(field.name for field in fields(ManifestRow))
_FIELD_COLUMNS = 3  # the last ones, which are written where there are slides
_ROW = TypeAdapter(ManifestRow)


def read_manifest(folder: Path | str) -> tuple[ManifestRow, ...]:
    """Read ``manifest.csv`` of a lab's dataset.

    Args:
        folder: The dataset's folder.

    Returns:
        The rows, in the file's order.

    Raises:
        LabError: The file is missing, or a line is not as `write_manifest` writes it.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise LabError(f"{path}: expected the dataset's manifest, found none. Ingest the lab first.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = [line for line in csv.reader(file, strict=True) if line] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise LabError(f"{path}: expected CSV in UTF-8, got: {error}. Ingest the lab again.") from error
    if tuple(header) not in (_COLUMNS, _COLUMNS[:-_FIELD_COLUMNS]):
        raise LabError(
            f"{path}: expected the columns {','.join(_COLUMNS)}, got {','.join(header)}. Ingest the lab again."
        )
    rows: list[ManifestRow] = []
    for number, line in enumerate(lines, start=2):
        where = f"{path}, line {number}"
        if len(line) != len(header):
            raise LabError(f"{where}: expected {len(header)} values, got {len(line)}. Ingest the lab again.")
        try:
            values = {column: value or None for column, value in zip(header, line, strict=True)}
            rows.append(_ROW.validate_python(values))
        except ValidationError as error:
            fault = error.errors()[0]
            raise LabError(
                f"{where}, {fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}. Ingest the lab again."
            ) from error
    if len({row.name for row in rows}) < len(rows):
        raise LabError(f"{path}: expected each image once, got one twice. Ingest the lab again.")
    return tuple(rows)


def write_manifest(folder: Path | str, rows: Iterable[ManifestRow]) -> None:
    """Write ``manifest.csv`` into the folder of a lab's dataset, atomically.

    Args:
        folder: An existing folder.
        rows: The rows, in this order.
    """
    rows = list(rows)
    columns = _COLUMNS if any(row.slide for row in rows) else _COLUMNS[:-_FIELD_COLUMNS]
    with atomic_write(Path(folder) / MANIFEST_FILE) as part, part.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(columns)
        values = map(attrgetter(*columns), rows)
        lines.writerows(["" if value is None else value for value in line] for line in values)
