"""The record of a segmentation: a JSON file that links its outputs to the image, the model, the run and the data."""

import functools
import platform
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from microseg.errors import DataError
from microseg.escaping import printable
from microseg.outputs.names import usable_name

__all__ = ["ImageInfo", "Provenance", "Record", "find_record", "read_record", "software_versions"]

_PACKAGES = ("microseg", "torch", "timm", "numpy")


class Provenance(BaseModel):
    """Model, data and settings behind a segmentation.

    Attributes:
        model: The registered model and its version, such as ``microseg-segmenter/3``; or another name for it.
        weights_sha256: SHA-256 of the weights.
        run_id: MLflow run of the training.
        datasets: Digest of each lab's dataset that the model was trained with.
        commit: Commit of the code.
        parameters: Parameters of the training.
        inference: Parameters of inference that change the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str | None = None
    run_id: str | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inference: dict[str, Any] = Field(default_factory=dict)


class ImageInfo(BaseModel):
    """An image that is segmented: what is known before the first row of its mask.

    Attributes:
        name: Stem of the output files' names.
        source: Path of the image; control characters and bytes that are not UTF-8 are escaped.
        source_sha256: SHA-256 of the image file; None if there is no file.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        mpp: Microns per pixel; None if unknown.
        step: Pixels of the image per pixel of the label image, in x and y.
        classes: Names of the classes, background first.
        provenance: Model, data and settings.
        instances: Classes whose touching objects are separated.
        stains: Stains that are measured.
        stain_vectors: Optical density of each in the red, green and blue channel; empty for the published ones.
        stains_estimated: Whether these were estimated from the image.
        stains_too_pale: Whether they were to be estimated, but too few pixels of the image are stained.
        regions: File of the outlines of regions that are measured one by one; None for none.
        regions_sha256: SHA-256 of that file.
        dab_threshold: Mean optical density of DAB from which on an object is positive; None where it is not measured.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    source: str
    source_sha256: str | None
    width: int
    height: int
    mpp: float | None
    step: tuple[float, float] = (1.0, 1.0)
    classes: tuple[str, ...]
    provenance: Provenance
    instances: tuple[str, ...] = ()
    stains: tuple[str, ...] = ()
    stain_vectors: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    stains_estimated: bool = False
    stains_too_pale: bool = False
    dab_threshold: float | None = None
    regions: str | None = None
    regions_sha256: str | None = None

    @field_validator("source", mode="before")
    @classmethod
    def _printable(cls, source: object) -> object:
        return printable(source) if isinstance(source, str) else source

    @property
    def mean_step(self) -> float:
        """Pixels of the image along one pixel of the label image, the geometric mean of both axes."""
        return float((self.step[0] * self.step[1]) ** 0.5)

    @property
    def label_mpp(self) -> float | None:
        """Microns per pixel of the label image; None if unknown."""
        return None if self.mpp is None else self.mpp * self.mean_step

    @property
    def mask_shape(self) -> tuple[int, int]:
        """Height and width of the label image."""
        return round(self.height / self.step[1]), round(self.width / self.step[0])

    @property
    def display_name(self) -> str:
        """The image's file name; ``name`` where several images of a batch share the file name."""
        source = Path(self.source)
        return source.name if self.name in (usable_name(source.stem), usable_name(source.name)) else self.name


class Record(ImageInfo):
    """The segmentation of one image and its files.

    Attributes:
        kind: Marks a JSON file as such a record.
        outputs: File name of each output, beside the record.
        summary: Measurements of the whole image; None where unknown.
        created: Time of creation.
        seconds: Time of the network.
        software: Versions of the packages.
    """

    kind: Literal["microseg segmentation 1"] = "microseg segmentation 1"
    outputs: dict[str, str]
    summary: dict[str, int | float | None]
    created: datetime
    seconds: float | None
    software: dict[str, str]

    @property
    def missing_pixel_size(self) -> bool:
        """Whether the image was assumed to have the model's pixel size, because its own is unknown."""
        return self.mpp is None and self.provenance.inference.get("model_mpp") is not None


def read_record(path: Path) -> Record:
    """Read the record of a segmentation.

    Args:
        path: ``<name>.json``.

    Raises:
        DataError: The file is missing, or is not such a record.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path}: expected the record of a segmentation, got {type(error).__name__}: {error}. Segment it again."
        ) from error


def find_record(path: Path) -> Path:
    """Find the only record in a folder; the path of a file is returned as it is.

    Raises:
        DataError: The folder has no record, or several.
    """
    if not path.is_dir():
        return path
    found = []
    for candidate in sorted(path.glob("*.json")):
        with suppress(DataError):
            read_record(candidate)
            found.append(candidate)
    if len(found) != 1:
        raise DataError(
            f"{path}: expected one segmentation, got {len(found)}"
            + (f" ({', '.join(f.name for f in found[:5])} …): name one of them." if found else ": check the path.")
        )
    return found[0]


@functools.cache
def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a segmentation depends on; do not modify."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
