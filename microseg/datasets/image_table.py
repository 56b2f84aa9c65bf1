"""What a lab says about single images: ``images.csv`` beside its ``lab.yaml``."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from microseg.datasets.names import image_key, image_name
from microseg.errors import LabError
from microseg.slides.pixel_size import MPP_RANGE

__all__ = ["IMAGE_TABLE_FILE", "ImageMetadata", "read_image_table"]

IMAGE_TABLE_FILE = "images.csv"

_COLUMNS = ("file", "group", "mpp")


@dataclass(frozen=True)
class ImageMetadata:
    """What the lab says about one image.

    Attributes:
        file: The file's name as the lab wrote it.
        group: Patient or slide; None when not said.
        mpp: Microns per pixel; None when not said.
    """

    file: str
    group: str | None
    mpp: float | None


def read_image_table(source: Path) -> dict[str, ImageMetadata]:
    """Read ``images.csv``: columns ``file`` and ``group`` or ``mpp`` or both, separated by commas or semicolons.

    Args:
        source: The delivery's folder.

    Returns:
        What is said, by `image_key` of the image's name; empty when the file is not there.

    Raises:
        LabError: Other columns, an image listed twice, or an impossible pixel size.
    """
    path = source / IMAGE_TABLE_FILE
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = ";" if ";" in text.partition("\n")[0] else ","
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        columns = [column.strip().lower() for column in lines.fieldnames or ()]
        lines.fieldnames = columns
        if "file" not in columns or len(columns) < 2 or sorted(columns) != sorted(set(columns) & set(_COLUMNS)):
            raise LabError(
                f"{path}: expected the columns file, and group or mpp or both, got {', '.join(columns) or 'nothing'}. "
                "Name them in the first line."
            )
        facts: dict[str, ImageMetadata] = {}
        for line in lines:
            fact = _parse(line, f"{path}, line {lines.line_num}", len(columns))
            key = image_key(image_name(fact.file))
            if key in facts:
                raise LabError(f"{path}, line {lines.line_num}: expected each image once, got {fact.file} again.")
            facts[key] = fact
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise LabError(f"{path}: expected CSV in UTF-8, got: {error}. Save it as 'CSV UTF-8'.") from error
    return facts


def _parse(line: dict[str, str], where: str, columns: int) -> ImageMetadata:
    if None in line or None in line.values():
        raise LabError(f"{where}: expected {columns} values, got another number. Put values with a comma in quotes.")
    values = {column: value.strip() for column, value in line.items()}
    if not values["file"]:
        raise LabError(f"{where}: expected a file name, got none. Fill it in, or remove the line.")
    try:
        mpp = float(values["mpp"]) if values.get("mpp") else None
        if mpp is not None and not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
            raise ValueError
    except ValueError:
        raise LabError(
            f"{where}: expected {MPP_RANGE[0]} to {MPP_RANGE[1]} microns per pixel with a decimal point, or nothing, "
            f"got {values['mpp']!r}. Correct it."
        ) from None
    return ImageMetadata(file=values["file"], group=values.get("group") or None, mpp=mpp)
