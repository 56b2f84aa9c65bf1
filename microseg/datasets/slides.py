"""The slides of a dataset: ``slides.json``, which records each of them, and the files in ``slides/``.

A slide lies in ``slides/``, or stays where it was ingested from; then its record has its location and its hash, which
is checked when it is read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from microseg.datasets.fields import FieldRecipe
from microseg.errors import LabError, ParseError
from microseg.files import clone_or_copy, write_text_file
from microseg.parsing import parse_json
from microseg.slides.parts import slide_parts
from microseg.slides.region import RecordedSlide

__all__ = ["SLIDES", "SLIDES_FILE", "DatasetSlide", "SlideTable", "read_slides", "store_slide", "write_slides"]

SLIDES = "slides"
"""Folder of the slides in a dataset."""

SLIDES_FILE = "slides.json"


@dataclass(frozen=True)
class DatasetSlide:
    """One slide of a lab's dataset.

    Attributes:
        file: Name of its file or folder, in ``slides/``.
        sha256: See `source_sha256`.
        bytes: Size of all its files.
        width: Pixels of the finest level.
        height: Pixels of the finest level.
        mpp: Microns per pixel of the finest level.
        levels: Width and height of each level, the finest first.
        tissue_mm2: Area of its tissue, in square millimeters.
        pen: Fraction of the tissue under marker pen.
        out_of_focus: Fraction of the places looked at that are out of focus.
        labels: Digest of the annotation that was ingested last, and of what it means; None where there was none.
        location: Where it stays; None where it is in ``slides/``.
        state: Of one that stays where it is, or is at an address, see `source_state`.
    """

    file: str
    sha256: str
    bytes: int
    width: int
    height: int
    mpp: float
    levels: tuple[tuple[int, int], ...]
    tissue_mm2: float
    pen: float
    out_of_focus: float
    labels: str | None = None
    location: str | None = None
    state: str | None = None

    @property
    def recorded(self) -> RecordedSlide | None:
        """What the slide must still be, where others can change it."""
        kept = self.location is None and self.state is None
        return None if kept else RecordedSlide(self.sha256, self.state or "")

    def path(self, dataset: Path) -> Path:
        """Where the slide of a dataset is, given the dataset's folder."""
        return dataset / SLIDES / self.file if self.location is None else Path(self.location)


@dataclass(frozen=True)
class SlideTable:
    """Contents of ``slides.json``.

    Attributes:
        recipe: How the fields without labels were chosen.
        slides: The slides, by name.
    """

    recipe: FieldRecipe
    slides: tuple[DatasetSlide, ...]


_TABLE = TypeAdapter(SlideTable)


def read_slides(folder: Path) -> SlideTable | None:
    """Read ``slides.json`` of a dataset; None where it has no slides.

    Raises:
        LabError: It is not as `write_slides` writes it.
    """
    path = folder / SLIDES_FILE
    if not path.is_file():
        return None
    try:
        return _TABLE.validate_python(parse_json(path.read_bytes()))
    except (ParseError, ValidationError, OSError) as error:
        raise LabError(f"{path}: expected the slides of the dataset, got: {error}. Ingest the lab again.") from error


def write_slides(folder: Path, table: SlideTable) -> None:
    """Write ``slides.json`` into the folder of a dataset, atomically."""
    text = orjson.dumps(_TABLE.dump_python(table, mode="json"), option=orjson.OPT_INDENT_2)
    write_text_file(folder / SLIDES_FILE, text.decode() + "\n")


def store_slide(slide: Path, target: Path) -> None:
    """Put a slide with all its files beside others; the content is shared with the original where possible.

    Args:
        slide: Its file or folder.
        target: The new path, with the same name.
    """
    for path, relative in slide_files(slide):
        place = target.parent / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        clone_or_copy(path, place)


def slide_files(slide: Path) -> Iterator[tuple[Path, Path]]:
    """The files of a slide, each with its path relative to the folder that the slide is in."""
    files: Iterable[Path] = slide_parts(slide) if slide.is_dir() else (slide, *slide_parts(slide))
    return ((path, path.relative_to(slide.parent)) for path in files)
