"""What a lab states about single images, ``images.csv``, and the names by which its files belong together."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from microseg.errors import LabError, ParseError
from microseg.files import unsafe_reason
from microseg.parsing import read_text
from microseg.slides.pixel_size import MPP_RANGE
from microseg.slides.readers import readable_suffixes

__all__ = ["IMAGE_TABLE_FILE", "ImageMetadata", "image_key", "image_name", "read_image_table"]

IMAGE_TABLE_FILE = "images.csv"

_COLUMNS = ("file", "group", "mpp")
_MOST_BYTES = 2**26


def image_name(path: Path | str, suffixes: tuple[str, ...] | None = None) -> str:
    """Name of an image: its file name without suffix, and without ``.ome`` before that.

    Args:
        path: A file of the image, or its name.
        suffixes: Suffixes to remove; None for those of images and slides.
    """
    suffixes = readable_suffixes() if suffixes is None else suffixes
    return _ending(suffixes).sub("", Path(path).name)


@cache
def _ending(suffixes: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(\.ome)*({'|'.join(map(re.escape, suffixes))})$", re.IGNORECASE)


def image_key(name: str) -> str:
    """Key by which names of images are compared: regardless of case and of how accents are encoded.

    Two names with the same key cannot exist in one folder of a case-insensitive file system.

    Args:
        name: Name of an image, see `image_name`.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@dataclass(frozen=True)
class ImageMetadata:
    """One line of ``images.csv``.

    Attributes:
        file: Name of the file as stated by the lab.
        group: Patient or slide; None when not stated.
        mpp: Microns per pixel; None when not stated.
    """

    file: str
    group: str | None
    mpp: float | None


def read_image_table(source: Path, roots: Iterable[Path] = ()) -> dict[str, ImageMetadata]:
    """Read ``images.csv``: columns ``file`` and ``group`` or ``mpp`` or both, separated by commas or semicolons.

    Args:
        source: Folder of the incoming dataset.
        roots: Folders outside it that the file may be a link to.

    Returns:
        The lines, by `image_key` of the image's name; empty when there is no such file.

    Raises:
        LabError: Other columns, an image listed twice, or an invalid pixel size.
    """
    path = source / IMAGE_TABLE_FILE
    if not path.exists() and not path.is_symlink():
        return {}
    if reason := unsafe_reason(path, (source, *roots)):
        raise LabError(f"{path}: {reason}")
    try:
        text = read_text(path, _MOST_BYTES)
        separator = ";" if ";" in text.partition("\n")[0] else ","
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        columns = [column.strip().lower() for column in lines.fieldnames or ()]
        lines.fieldnames = columns
        if "file" not in columns or len(columns) < 2 or sorted(columns) != sorted(set(columns) & set(_COLUMNS)):
            raise LabError(
                f"{path}: expected the columns file, and group or mpp or both, got {', '.join(columns) or 'nothing'}. "
                "Name them in the first line."
            )
        table: dict[str, ImageMetadata] = {}
        for line in lines:
            entry = _parse(line, f"{path}, line {lines.line_num}", len(columns))
            key = image_key(image_name(entry.file))
            if key in table:
                raise LabError(f"{path}, line {lines.line_num}: expected each image once, got {entry.file} again.")
            table[key] = entry
    except (csv.Error, ParseError) as error:
        raise LabError(f"{path}: expected CSV in UTF-8, got: {error}. Save it as 'CSV UTF-8'.") from error
    return table


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
