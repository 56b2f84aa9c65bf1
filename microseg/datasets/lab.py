"""What a lab states about all its images: ``lab.yaml``."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from microseg.annotations.classes import IGNORE, Cells, Color, LabelClasses, MaskKind
from microseg.datasets.lab_channels import dump_channels, parse_channels
from microseg.errors import LabError, ParseError
from microseg.files import unsafe_reason, write_text_file
from microseg.parsing import parse_yaml, read_text
from microseg.slides.channels import Channel, ReadOptions
from microseg.slides.color import check_bit_depth
from microseg.slides.pixel_size import MPP_RANGE

__all__ = [
    "LAB_FILE",
    "LAB_FILE_TEMPLATE",
    "LabMetadata",
    "check_lab_name",
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
"""Further keys state what annotation files mean; see docs/reference/annotations.md."""

_ADVICE = f"Write it like this:\n{LAB_FILE_TEMPLATE}"

_ANNOTATIONS = ("class_names", "regions", "ignored_classes", "masks", "palette", "cells")  # written where stated
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def check_lab_name(name: str) -> str:
    """Check that a lab's name is valid as a folder, a tag and a file name on every system.

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
    """Contents of ``lab.yaml``.

    Attributes:
        lab: Name of the lab: 1 to 63 of ``a-z 0-9 _ -``, beginning with a letter or digit.
        stain: Stain, as free text.
        classes: Names of the classes in the order of their indices; the first is background.
        mpp: Microns per pixel of the images for which ``images.csv`` states none; None when unknown.
        tissue: Tissue and preparation, as free text.
        scanner: Scanner or camera, as free text.
        bit_depth: Bits that hold the values of images of 16 bits that do not state fewer; None where there are none, or
            it is to be measured.
        channels: Channels that are segmented, of images of several channels; empty for gray and RGB images. The ranges
            that were measured are kept here.
        labelled: Whether any image has a mask.
        class_names: Further names of the classes in annotation files, by class; ``classes`` may be written as a
            mapping to such names, then background is added where it is missing.
        regions: Names of annotated regions, outside of which nothing is known; ``image`` where each image is annotated
            completely.
        ignored_classes: Names of areas that are left out: nothing is known about their pixels.
        masks: What the values of raster masks mean.
        palette: Colors of color masks by class, as three numbers or ``#rrggbb``; ``ignore`` is another name there.
        cells: Which outline of QuPath's cells is the object.
        instances: Classes whose objects are numbered in ``instances/``, and are separated where they touch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lab: Annotated[str, AfterValidator(check_lab_name)]
    stain: _Text
    classes: tuple[_Text, ...]
    mpp: float | None = None
    tissue: _Text | None = None
    scanner: _Text | None = None
    bit_depth: Annotated[int, AfterValidator(check_bit_depth)] | None = None
    channels: tuple[Channel, ...] = ()
    labelled: bool = False
    instances: tuple[_Text, ...] = ()
    class_names: dict[_Text, tuple[_Text, ...]] = {}
    regions: tuple[_Text, ...] | Literal["image"] = ("Region*",)
    ignored_classes: tuple[_Text, ...] = ("Ignore*",)
    masks: MaskKind = "index"
    palette: dict[_Text, Color] = {}
    cells: Cells | None = None

    @property
    def read_options(self) -> ReadOptions:
        """How the values of the lab's images become RGB."""
        return ReadOptions(self.bit_depth, self.channels)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels; empty for gray and RGB images."""
        return tuple(channel.name for channel in self.channels)

    @property
    def label_classes(self) -> LabelClasses:
        """The classes, and what annotation files mean."""
        return LabelClasses(
            self.classes,
            self.class_names,
            None if self.regions == "image" else self.regions,
            self.ignored_classes,
            self.masks,
            self.palette,
            self.cells,
        )

    @model_validator(mode="before")
    @classmethod
    def _separate_names(cls, values: Any) -> Any:
        """Accept classes as a mapping from each class to its names in annotation files."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        classes = values.get("classes")
        if isinstance(classes, dict):
            names = {str(key): (value,) if isinstance(value, str) else value or () for key, value in classes.items()}
            if "background" not in map(str.casefold, names):
                names = {"background": (), **names}
            values["classes"] = tuple(names)
            values["class_names"] = {key: each for key, each in names.items() if each} | values.get("class_names", {})
        if values.get("palette") and "masks" not in values:
            values["masks"] = "colors"
        return values

    @field_validator("channels", mode="before")
    @classmethod
    def _parse_channels(cls, channels: Any) -> tuple[Channel, ...]:
        return channels if isinstance(channels, tuple) else parse_channels(channels)

    @field_validator("palette", mode="before")
    @classmethod
    def _parse_colors(cls, palette: Any) -> Any:
        def parse(color: Any) -> Any:
            if isinstance(color, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", color):
                return tuple(bytes.fromhex(color[1:]))
            if isinstance(color, list | tuple) and len(color) == 3 and all(_is_byte(value) for value in color):
                return tuple(color)
            raise ValueError(f"expected a color as [red, green, blue] of 0..255 or '#rrggbb', got {color!r}")

        return {key: parse(color) for key, color in palette.items()} if isinstance(palette, dict) else palette

    @model_validator(mode="after")
    def _known_classes(self) -> Self:
        if unknown := sorted(set(self.instances) - set(self.classes[1:])):
            raise ValueError(
                f"instances: expected foreground classes out of {', '.join(self.classes[1:])}, got {', '.join(unknown)}"
            )
        known = {*self.classes, "ignore"}
        for key, names in (("class_names", self.class_names), ("palette", self.palette)):
            if unknown := sorted(set(names) - (known if key == "palette" else set(self.classes))):
                extra = ", ignore" if key == "palette" else ""
                raise ValueError(f"{key}: expected {', '.join(self.classes)}{extra}, got {', '.join(unknown)}")
        if len(set(self.palette.values())) < len(self.palette):
            raise ValueError("palette: expected a different color for each class, got one twice")
        if (self.masks == "colors") != bool(self.palette):
            raise ValueError("expected a palette with masks: colors, and only then")
        means: dict[str, str] = {}
        for name, others in ((it, (it, *self.class_names.get(it, ()))) for it in self.classes):
            for other in others:
                if means.setdefault(other.casefold(), name) != name:
                    raise ValueError(f"expected each name for one class, got {other!r} for {name} and another one")
        return self

    @field_validator("classes")
    @classmethod
    def _valid_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(classes) < IGNORE:
            raise ValueError(f"expected 2 to {IGNORE - 1} classes, background first, got {len(classes)}")
        if len({name.casefold() for name in classes}) < len(classes):
            raise ValueError(f"expected a different name for each class, got {', '.join(classes)}")
        if "background" in {name.casefold() for name in classes[1:]}:
            raise ValueError(f"expected background to come first, got {', '.join(classes)}")
        return classes

    @field_validator("mpp")
    @classmethod
    def _valid_mpp(cls, mpp: float | None) -> float | None:
        low, high = MPP_RANGE
        if mpp is not None and not (math.isfinite(mpp) and low <= mpp <= high):
            raise ValueError(f"expected {low} to {high} microns per pixel, or null when unknown, got {mpp}")
        return mpp


def read_lab_metadata(folder: Path | str, *, lab: str | None = None, roots: Iterable[Path] = ()) -> LabMetadata:
    """Read ``lab.yaml`` of a lab's folder.

    Args:
        folder: The lab's folder.
        lab: Expected name of the lab; used as its name when the file states none.
        roots: Folders outside it that the file may be a link to.

    Returns:
        The metadata.

    Raises:
        LabError: The file is missing, is not YAML, has unknown, missing or invalid values, or names another lab.
    """
    path = Path(folder) / LAB_FILE
    if not path.parent.is_dir():
        raise LabError(f"{folder}: expected the folder of a lab's images, found none. Check the path.")
    if not path.exists() and not path.is_symlink():
        raise LabError(f"{path}: expected the metadata of the lab, found none. {_ADVICE}")
    if reason := unsafe_reason(path, (path.parent, *roots)):
        raise LabError(f"{path}: {reason}")
    try:
        stated = parse_yaml(read_text(path))
    except ParseError as error:
        raise LabError(f"{path}: {error}. {_ADVICE}") from error
    if not isinstance(stated, dict):
        raise LabError(f"{path}: expected 'key: value' lines, got {type(stated).__name__}. {_ADVICE}")
    if unknown := [str(key)[:80] for key in stated if key not in LabMetadata.model_fields]:
        raise LabError(
            f"{path}: expected the keys {', '.join(LabMetadata.model_fields)}, got also {', '.join(unknown[:5])}. "
            "Correct or remove them."
        )
    if lab is not None and stated.setdefault("lab", lab) != lab:
        raise LabError(
            f"{path}: expected lab {lab!r} as requested, got {stated['lab']!r}. Correct the file or leave the name out."
        )
    try:
        return LabMetadata.model_validate(stated)
    except ValidationError as error:
        faults = "; ".join(
            ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "))))
            for fault in error.errors()
        )
        raise LabError(f"{path}: {faults}. {_ADVICE}") from error


def write_lab_metadata(folder: Path | str, metadata: LabMetadata) -> None:
    """Write ``lab.yaml`` into a lab's folder, atomically.

    Args:
        folder: An existing folder.
        metadata: Its contents.
    """
    values = metadata.model_dump(mode="json")
    for name in _ANNOTATIONS:
        if getattr(metadata, name) == LabMetadata.model_fields[name].default:
            del values[name]
    if metadata.bit_depth is None:
        del values["bit_depth"]
    del values["channels"]
    if metadata.channels:
        values["channels"] = dump_channels(metadata.channels)
    write_text_file(Path(folder) / LAB_FILE, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
