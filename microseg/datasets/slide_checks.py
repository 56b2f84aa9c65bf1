"""Checks of the slides of an incoming dataset, before any of them is ingested."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import tifffile

from microseg import limits
from microseg.annotations.classes import IGNORE, LabelClasses
from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import read_annotation
from microseg.annotations.labels import Labels
from microseg.datasets.fields import FieldRecipe, FoundFields, choose_fields
from microseg.datasets.image_table import image_name
from microseg.datasets.slides import DatasetSlide, slide_files
from microseg.errors import ImageReadError
from microseg.files import file_sha256
from microseg.slides.channels import ReadOptions
from microseg.slides.decoding import read_errors
from microseg.slides.limited import can_be_slide, open_slide
from microseg.slides.parts import missing_parts
from microseg.slides.pixel_size import StatedMpp, agreed_mpp
from microseg.slides.slide import Slide
from microseg.slides.tiff_layout import is_tiff
from microseg.slides.tissue import TissueMap

__all__ = ["CheckedSlide", "check_slide", "labels_digest", "read_labels", "regions_on_glass"]

_PLACES = 4  # read of each level at random, beside its corners and its center
_PLACE_SIDE = 64  # pixels
_MOST_PAGES = 4096  # of a TIFF
_SEEN = 1024  # longer side at which an annotated region is looked at, in pixels
_LABEL_SECONDS = 300.0  # a million outlines take about a minute


@dataclass(frozen=True)
class CheckedSlide:
    """One slide that can be ingested.

    Attributes:
        path: Its file or folder.
        record: What is recorded of it.
        found: Its fields without labels.
    """

    path: Path
    record: DatasetSlide
    found: FoundFields

    @property
    def name(self) -> str:
        """Name of the slide, without suffix."""
        return image_name(self.path)


def check_slide(
    path: Path, digest: str, recipe: FieldRecipe, stated: StatedMpp | None, reading: ReadOptions | None = None
) -> CheckedSlide:
    """Check a slide: all its files are there, it opens, every level can be read at sampled places, its pixel size is
    known, it shows tissue. Pen and focus are measured.

    Args:
        path: Its file or folder.
        digest: Its hash.
        recipe: How its fields are chosen.
        stated: Pixel size that the lab states.
        reading: Bit depth and channels, see `read_image`.

    Raises:
        ImageReadError: It cannot be ingested, and why.
        DataError: Two pixel sizes are stated that differ.
    """
    if missing := missing_parts(path):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ImageReadError(
            f"expected all files of the slide, missing {', '.join(missing[:3])}{more}. Copy it again with all of them."
        )
    if not can_be_slide(path):
        raise ImageReadError(
            f"expected a slide ({path.suffix}), got a file that no slide reader recognizes: it is empty, cut off, or "
            "of another kind. Copy it again with all of its files; an image needs its own ending."
        )
    limits.run_limited(str(path), check_extent, path)
    with open_slide(path, reading) as slide:
        mpp = agreed_mpp(path, slide.mpp, stated)
        if mpp is None:
            raise ImageReadError(
                "expected a slide that states its pixel size, got none: its scale is not known. State its microns per "
                "pixel in images.csv (file,mpp), or in lab.yaml for all slides."
            )
        _check_levels(slide)
        found = choose_fields(slide, mpp, recipe)
        if not found.fields:
            what = "only places out of focus or under pen" if found.out_of_focus or found.pen else "none"
            raise ImageReadError(
                f"expected tissue on the slide, found {what} (tissue: {found.tissue:.1%}, pen: {found.pen:.1%} of it, "
                f"out of focus: {found.out_of_focus:.0%} of the places looked at). Leave it out, or scan it again."
            )
        record = DatasetSlide(
            file=path.name,
            sha256=digest,
            bytes=sum(file.stat().st_size for file, _ in slide_files(path)),
            width=slide.width,
            height=slide.height,
            mpp=mpp,
            levels=tuple((level.width, level.height) for level in slide.levels),
            tissue_mm2=round(found.tissue * slide.width * slide.height * mpp**2 / 1e6, 4),
            pen=round(found.pen, 4),
            out_of_focus=round(found.out_of_focus, 4),
        )
    return CheckedSlide(path, record, found)


def labels_digest(annotation: Path, classes: LabelClasses) -> str:
    """Digest of an annotation file and of what its names mean: with the same one the labels are the same."""
    return sha256(f"{file_sha256(annotation)} {classes}".encode()).hexdigest()


def read_labels(annotation: Path, slide: DatasetSlide, classes: LabelClasses) -> Labels:
    """Read the annotation of a slide.

    Raises:
        ImageReadError: It cannot be read, or is of another slide.
    """
    image = AnnotatedImage(slide.file, slide.width, slide.height, slide.mpp)
    return limits.run_limited(
        str(annotation), read_annotation, annotation, image, classes, seconds=_LABEL_SECONDS, memory=4 * limits.MEMORY
    )


def regions_on_glass(labels: Labels, tissue: TissueMap) -> tuple[int, int]:
    """Number of annotated regions with outlines in them, and of those of them that show bare glass only.

    Outlines of another slide are often there; a region without outlines may be drawn on glass on purpose.
    """
    drawn = glass = 0
    for left, top, right, bottom in labels.known_boxes():
        scale = min(1.0, _SEEN / max(right - left, bottom - top))
        classes = labels.read(left, top, right - left, bottom - top, scale).classes
        if ((classes > 0) & (classes < IGNORE)).any():
            drawn += 1
            width, height = labels.width, labels.height
            glass += not tissue.touches(left / width, top / height, right / width, bottom / height)
    return drawn, glass


def check_extent(path: Path) -> None:
    """Check that all pixels of a TIFF are inside the file: one that was cut off can be opened all the same.

    Raises:
        ImageReadError: They are not.
    """
    if not path.is_file() or not is_tiff(path):
        return
    size = path.stat().st_size
    with read_errors(path, "a slide"), tifffile.TiffFile(path) as tiff:
        for number, page in enumerate(tiff.pages):
            if number >= _MOST_PAGES:
                raise ImageReadError(f"expected at most {_MOST_PAGES} images in a slide, got more.")
            subs = page.pages if isinstance(page, tifffile.TiffPage) and page.subifds else ()
            for each in (page, *(subs or ())):
                if not isinstance(each, tifffile.TiffPage):
                    continue
                ends = np.asarray(each.dataoffsets, np.int64) + np.asarray(each.databytecounts, np.int64)
                if len(ends) and int(ends.max()) > size:
                    raise ImageReadError(
                        f"expected a whole file, got one that was cut off: its pixels end at byte {int(ends.max()):,}, "
                        f"the file at {size:,}. Copy it again."
                    )


def _check_levels(slide: Slide) -> None:
    """Read places of each level: its corners, its center, and some at random."""
    rng = np.random.default_rng(0)
    for number, level in enumerate(slide.levels):
        width, height = min(_PLACE_SIDE, level.width), min(_PLACE_SIDE, level.height)
        right, bottom = level.width - width, level.height - height
        places = {(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)}
        places |= {(int(rng.integers(right + 1)), int(rng.integers(bottom + 1))) for _ in range(_PLACES)}
        for x, y in sorted(places):
            slide.read_region(number, x, y, width, height)
