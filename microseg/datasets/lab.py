"""A lab's card: what ``lab.yaml`` says about the lab's images."""

import csv
import io
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, field_validator

from microseg.annotations.index_masks import IGNORE
from microseg.errors import LabError
from microseg.files import atomic_write
from microseg.slides.images import IMAGE_SUFFIXES
from microseg.slides.pixel_size import MPP_RANGE

__all__ = [
    "IMAGE_TABLE_FILE",
    "LAB_FILE",
    "LAB_FILE_TEMPLATE",
    "ImageMetadata",
    "LabMetadata",
    "check_lab_name",
    "image_key",
    "image_name",
    "read_image_table",
    "read_lab_metadata",
    "write_lab_metadata",
]

LAB_FILE = "lab.yaml"
LAB_FILE_TEMPLATE = """\
lab: my-lab                     # lower-case letters, digits, - and _
stain: H&E
classes: [background, gland]    # background first; a mask holds 0, 1, 2 … in this order
mpp: 0.5                        # microns per pixel; null when unknown
tissue: human colon             # optional
scanner: null                   # optional
"""

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def check_lab_name(name: str) -> str:
    """Accept a lab's name only when it can safely be a folder, a tag and a file name everywhere.

    Args:
        name: Proposed name.

    Returns:
        The name, unchanged.

    Raises:
        LabError: The name is not 1 to 63 of ``a-z 0-9 _ -``, or does not begin with a letter or digit.
    """
    if isinstance(name, str) and _PLAIN_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9_-]+", "-", str(name).lower()).strip("-_")[:63]
    raise LabError(
        "expected a lab name of 1 to 63 lower-case letters, digits, '-' or '_', beginning with a letter or digit, "
        f"got {name!r}. Call it {plain or 'my-lab'!r}, for example."
    )


class LabMetadata(BaseModel):
    """What a lab states about its images.

    Attributes:
        lab: Name of the lab, as `check_lab_name` accepts it.
        stain: Stain, in the lab's own words.
        classes: Names of the classes in the order of their mask values; the first is background.
        mpp: Microns per pixel of all images whose own is not stated otherwise; None when unknown.
        tissue: Tissue and preparation, in the lab's own words.
        scanner: Scanner or camera, in the lab's own words.
        labelled: Whether any image has a mask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lab: str
    stain: _Text
    classes: tuple[_Text, ...]
    mpp: float | None = None
    tissue: _Text | None = None
    scanner: _Text | None = None
    labelled: bool = False

    @field_validator("lab")
    @classmethod
    def _plain(cls, name: str) -> str:
        return check_lab_name(name)

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(classes) < IGNORE:
            raise ValueError(f"expected 2 to {IGNORE - 1} classes, background first, got {len(classes)}")
        if len({name.casefold() for name in classes}) < len(classes):
            raise ValueError(f"expected a different name for each class, got {', '.join(classes)}")
        if "background" in {name.casefold() for name in classes[1:]}:
            raise ValueError(f"expected background to come first, got {', '.join(classes)}")
        return classes

    @field_validator("mpp")
    @classmethod
    def _plausible(cls, mpp: float | None) -> float | None:
        low, high = MPP_RANGE
        if mpp is not None and not (math.isfinite(mpp) and low <= mpp <= high):
            raise ValueError(f"expected {low} to {high} microns per pixel, or null when unknown, got {mpp}")
        return mpp


def read_lab_metadata(folder: Path | str, *, lab: str | None = None) -> LabMetadata:
    """Read ``lab.yaml`` of a lab's folder.

    Args:
        folder: The lab's folder.
        lab: The name the lab must have; taken as its name when the file states none.

    Returns:
        The card.

    Raises:
        LabError: The file is missing, is not YAML, has unknown, missing or impossible values, or names another lab.
    """
    path = Path(folder) / LAB_FILE
    if not path.is_file():
        raise LabError(f"{path}: expected the lab's card, found none. Write one like this:\n{LAB_FILE_TEMPLATE}")
    try:
        stated: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise LabError(
            f"{path}: expected YAML in UTF-8, got: {error}. Write it like this:\n{LAB_FILE_TEMPLATE}"
        ) from error
    if not isinstance(stated, dict):
        raise LabError(
            f"{path}: expected 'key: value' lines, got {type(stated).__name__}. "
            f"Write it like this:\n{LAB_FILE_TEMPLATE}"
        )
    if unknown := [str(key) for key in stated if key not in LabMetadata.model_fields]:
        raise LabError(
            f"{path}: expected the keys {', '.join(LabMetadata.model_fields)}, got also {', '.join(unknown)}. "
            "Correct or remove them."
        )
    if lab is not None and stated.setdefault("lab", lab) != lab:
        raise LabError(
            f"{path}: expected lab {lab!r} as asked for, got {stated['lab']!r}. Correct the file or leave the name out."
        )
    try:
        return LabMetadata.model_validate(stated)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise LabError(f"{path}: {faults}. Write it like this:\n{LAB_FILE_TEMPLATE}") from error


def write_lab_metadata(folder: Path | str, card: LabMetadata) -> None:
    """Write ``lab.yaml`` into a lab's folder, whole or not at all.

    Args:
        folder: An existing folder.
        card: What to write.
    """
    values = card.model_dump(mode="json")
    with atomic_write(Path(folder) / LAB_FILE) as part:
        part.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


_SUFFIX = re.compile(rf"(\.ome)*({'|'.join(map(re.escape, IMAGE_SUFFIXES))})$", re.IGNORECASE)


def image_name(path: Path | str) -> str:
    """Name an image by its file: without folder, without suffix, without ``.ome``.

    Args:
        path: A file, or its name.

    Returns:
        The name.
    """
    return _SUFFIX.sub("", Path(path).name)


def image_key(name: str) -> str:
    """Tell names apart as the least able file system does: regardless of case and of how accents are written.

    Args:
        name: An image's name, as `image_name` gives it.

    Returns:
        The same text for names that cannot lie side by side.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


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
