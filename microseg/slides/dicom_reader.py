"""Whole slides in DICOM, read by OpenSlide: a file of a series, or a folder with the files of one."""

from pathlib import Path

from openslide import OpenSlide, OpenSlideError

from microseg.errors import ImageReadError
from microseg.slides.openslide_reader import VendorSlide
from microseg.slides.parts import DICOM_SUFFIXES, ZARR_SUFFIXES, dicom_series, slide_parts

__all__ = ["DicomReader"]


class DicomReader:
    """Opens the files of a series of the modality SM (VL Whole Slide Microscopy)."""

    priority = 110
    suffixes = DICOM_SUFFIXES
    folders = True

    def can_open(self, path: Path) -> bool:
        """Whether OpenSlide recognizes the file, or one in the folder, as DICOM."""
        if path.is_dir():
            return not path.name.lower().endswith(ZARR_SUFFIXES) and any(map(_is_slide, slide_parts(path)))
        return _is_slide(path)

    def open(self, path: Path) -> VendorSlide:
        """Open the slide.

        Raises:
            ImageReadError: The folder has several series, or the finest level is missing.
        """
        files = list(slide_parts(path)) if path.is_dir() else [path, *slide_parts(path)]
        files = [file for file in files if _is_slide(file)]
        if (count := len({dicom_series(file) for file in files})) > 1:
            raise ImageReadError(
                f"{path}: expected the files of one slide, got those of {count} (SeriesInstanceUID). Give each slide a "
                "folder of its own."
            )
        volumes = [kind for kind in map(_image_type, files) if "VOLUME" in kind]
        if volumes and all("RESAMPLED" in kind for kind in volumes):
            raise ImageReadError(
                f"{path}: expected all levels of the slide, got only {len(volumes)} reduced ones: the file of the "
                "finest level is missing. Copy the slide again with all of its files."
            )
        return VendorSlide(path, files[0])


def _is_slide(path: Path) -> bool:
    try:
        return OpenSlide.detect_format(str(path)) == "dicom"
    except (OpenSlideError, OSError, ValueError):
        return False


def _image_type(path: Path) -> list[str]:
    """``ImageType`` of a file, such as ORIGINAL, PRIMARY, VOLUME, NONE."""
    from pydicom import dcmread

    found = dcmread(path, stop_before_pixels=True, specific_tags=["ImageType"])
    return [str(value) for value in found.get("ImageType", ())]
