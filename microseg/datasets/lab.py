"""A lab's card: what ``lab.yaml`` says about the lab's images."""

import math
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, field_validator

from microseg.annotations.index_masks import IGNORE
from microseg.errors import LabError
from microseg.files import atomic_write
from microseg.slides.pixel_size import MPP_RANGE

__all__ = ["LAB_FILE", "LAB_FILE_TEMPLATE", "LabMetadata", "check_lab_name", "read_lab_metadata", "write_lab_metadata"]

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
