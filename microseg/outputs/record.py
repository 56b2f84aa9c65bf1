"""The record of a segmentation: the JSON file that leads from its outputs back to image, model, run and data."""

import functools
import platform
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from microseg.errors import DataError

__all__ = ["Provenance", "Record", "find_record", "read_record", "software_versions"]

_PACKAGES = ("microseg", "torch", "timm", "numpy")


class Provenance(BaseModel):
    """What made a segmentation.

    Attributes:
        model: the registered model and its version, such as ``microseg-segmenter/3``; or another name for it.
        weights_sha256: of the weights.
        run_id: of the training run.
        datasets: digest of each lab's dataset that the model was trained with.
        commit: of the code.
        parameters: of training.
        inference: of inference: what besides weights and image decides the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str | None = None
    run_id: str | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inference: dict[str, Any] = Field(default_factory=dict)


class Record(BaseModel):
    """One image's segmentation and its files.

    Attributes:
        kind: says that a JSON file is such a record.
        name: how the files' names begin.
        source: path of the image.
        source_sha256: of the image's file.
        width: of the image in pixels.
        height: of the image in pixels.
        mpp: microns per pixel; None if unknown.
        step: pixels of the image along one of the label image, across and down.
        classes: names of the classes, background first.
        provenance: what made it.
        outputs: file names, beside the record.
        summary: figures of the image; None where unknown.
        created: when.
        seconds: that the network took.
        software: versions.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["microseg segmentation 1"] = "microseg segmentation 1"
    name: str
    source: str
    source_sha256: str | None
    width: int
    height: int
    mpp: float | None
    step: tuple[float, float] = (1.0, 1.0)
    classes: tuple[str, ...]
    provenance: Provenance
    outputs: dict[str, str]
    summary: dict[str, int | float | None]
    created: datetime
    seconds: float | None
    software: dict[str, str]


def read_record(path: Path) -> Record:
    """Read the record of a segmentation.

    Args:
        path: ``<name>.json``.

    Raises:
        DataError: the file is missing, or no such record.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path}: expected the record of a segmentation, got {type(error).__name__}: {error}. "
            "Segment the image again."
        ) from error


def find_record(path: Path) -> Path:
    """The one record in a folder; a file is taken as it is.

    Raises:
        DataError: when the folder has no record or several.
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
    """Versions of what takes part in a segmentation; not to be changed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
