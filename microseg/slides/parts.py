"""The files of slides that consist of several: which belong together, and whether all of them are there.

==================  ==============================================================================================
MRXS                the folder of the same name, beside it
VMS, VMU            the files that it lists, in its folder
DICOM               the files of one series: in a folder of their own, or in one with others
OME-Zarr            everything in a folder ``*.zarr``; at an address, the file with it only
==================  ==============================================================================================
"""

import configparser
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from microseg import limits

__all__ = [
    "ADDRESS_SUFFIX",
    "DICOM_SUFFIXES",
    "ZARR_SUFFIXES",
    "dicom_series",
    "is_address_file",
    "is_slide_folder",
    "missing_parts",
    "slide_owners",
    "slide_parts",
]

DICOM_SUFFIXES = (".dcm",)
ZARR_SUFFIXES = (".zarr", ".zarr.zip", ".ozx")
ADDRESS_SUFFIX = ".zarr.url"
"""Of a file with the address of an OME-Zarr, see `microseg.slides.remote_zarr`."""

_MAX_INDEX_BYTES = 2**18  # read of an index, which lists file names
_DICOM_MAGIC = b"DICM"
_INDEXED = (".vms", ".vmu")
_REQUIRED = ("imagefile", "mapfile")  # what a VMS or VMU lists without which pixels are missing


def slide_parts(slide: Path) -> Iterator[Path]:
    """Find the further files that a slide consists of, without decoding any.

    Args:
        slide: The file that is opened, or the folder of the slide.

    Yields:
        The files, of a folder all of them.
    """
    kind = slide.suffix.lower()
    if slide.is_dir():
        yield from _files_below(slide)
    elif kind == ".mrxs":
        yield from _files_below(slide.with_suffix(""))
    elif kind in _INDEXED and slide.is_file():
        listed = set(_listed_names(slide))
        yield from (path for path in _files_of(slide.parent) if path.name in listed and path != slide)
    elif kind in DICOM_SUFFIXES and (series := dicom_series(slide)) is not None:
        others = (path for path in _files_of(slide.parent) if path != slide and path.suffix.lower() == kind)
        yield from (path for path in others if dicom_series(path) == series)


def missing_parts(slide: Path) -> list[str]:
    """Names of the files that the index of a slide lists, and that are not there."""
    kind = slide.suffix.lower()
    if kind == ".mrxs":
        folder = slide.with_suffix("")
        return [name for name in _mrxs_names(folder) if not _is_file(folder / name)]
    if kind in _INDEXED:
        return [name for name in _listed_names(slide, *_REQUIRED) if not _is_file(slide.parent / name)]
    return []


def _is_file(path: Path) -> bool:
    """Whether there is such a file; its name, which an index states, may be longer than any."""
    with suppress(OSError):
        return path.is_file()
    return False


def is_slide_folder(folder: Path) -> bool:
    """Whether a folder is a slide: an OME-Zarr, or one that has only files of DICOM."""
    if not folder.is_dir():
        return False
    if folder.name.lower().endswith(ZARR_SUFFIXES) or any((folder / it).is_file() for it in (".zattrs", "zarr.json")):
        return True
    files = [path for path in _files_of(folder) if not path.name.startswith(".") and path.name != "DICOMDIR"]
    return bool(files) and all(_is_dicom(path) for path in files)


def is_address_file(path: Path) -> bool:
    """Whether a file states the address of a slide, by its name."""
    return path.name.lower().endswith(ADDRESS_SUFFIX) and path.is_file()


def slide_owners(paths: Iterable[Path], suffixes: tuple[str, ...]) -> dict[Path, Path]:
    """The slide of each file that belongs to one; a slide belongs to itself.

    Args:
        paths: Files and folders, a folder before what is in it.
        suffixes: Endings of slides.
    """
    owners: dict[Path, Path] = {}
    series: dict[tuple[Path, str], Path] = {}
    for path in paths:
        if path in owners:
            continue
        if path.is_dir():
            if is_slide_folder(path):
                owners |= {path: path, **dict.fromkeys(slide_parts(path), path)}
        elif path.suffix.lower() in (*DICOM_SUFFIXES, "") and (uid := dicom_series(path)) is not None:
            owners[path] = series.setdefault((path.parent, uid), path)
        elif path.name.lower().endswith(suffixes):
            owners[path] = path
            owners |= dict.fromkeys(slide_parts(path), path)
    return owners


def dicom_series(path: Path) -> str | None:
    """Identifier of the series that a DICOM file belongs to, of a damaged one its path; None for other files."""
    if not _is_dicom(path):
        return None
    with suppress(Exception):  # reported when it is opened
        return limits.run_limited(str(path), _read_series, path)
    return str(path)


def _read_series(path: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID)


def _is_dicom(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(132)[128:] == _DICOM_MAGIC
    return False


def _mrxs_names(folder: Path) -> Iterator[str]:
    """Names of the files that ``Slidedat.ini`` lists."""
    yield "Slidedat.ini"
    index = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        with (folder / "Slidedat.ini").open("rb") as file:
            index.read_string(file.read(_MAX_INDEX_BYTES).decode("utf-8-sig", errors="replace"))
    except (OSError, configparser.Error):  # reported when it is opened
        return
    if name := index.get("HIERARCHICAL", "INDEXFILE", fallback=""):
        yield name
    if index.has_section("DATAFILE"):
        yield from (value for key, value in index.items("DATAFILE") if key.startswith("file_") and key != "file_count")


def _listed_names(slide: Path, *keys: str) -> list[str]:
    """Names of the files that a VMS or a VMU lists, for all keys or those that begin so."""
    text = ""
    with suppress(OSError), slide.open("rb") as file:
        text = file.read(_MAX_INDEX_BYTES).decode(errors="replace")
    lines = (line.partition("=") for line in text.splitlines())
    values = [value for key, _, value in lines if not keys or key.strip().lower().startswith(keys)]
    return [name for value in values if (name := value.strip().replace("\\", "/").rpartition("/")[2])]


def _files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file()]
