"""The images of a batch, with the pixel sizes, bit depth and channels that are stated of them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from microseg.datasets.image_table import image_key, image_name, read_image_table
from microseg.datasets.lab import LAB_FILE, LabMetadata, read_lab_metadata
from microseg.datasets.lab_channels import merge_channels
from microseg.datasets.manifest import MANIFEST_FILE
from microseg.errors import DataError, LabError
from microseg.slides.channels import Channel, ReadOptions
from microseg.slides.folder import ImageFolder, list_images
from microseg.slides.limited import file_mpp, measure_ranges, measured_depth
from microseg.slides.parts import ZARR_SUFFIXES
from microseg.slides.pixel_size import StatedMpp, same_mpp
from microseg.slides.readers import readable_suffixes

__all__ = ["BatchImages", "find_batch_images"]


@dataclass(frozen=True)
class BatchImages:
    """Images to segment together.

    Attributes:
        images: Their files.
        left_out: Reasons why other files of the folder are none of them, by name.
        lab: Name of their lab; None if unknown.
        mpp: Stated pixel sizes, by file name; see `agreed_mpp`.
        reading: Bit depth and channels, see `read_image`.
        notes: What a user should know of them, a sentence each, without its full stop.
    """

    images: tuple[Path, ...]
    left_out: Mapping[str, str]
    lab: str | None
    mpp: Mapping[str, StatedMpp]
    reading: ReadOptions
    notes: tuple[str, ...]


def find_batch_images(source: Path, *, mpp: float | None, labs: Path) -> BatchImages:
    """Find the images of a folder, and what is stated of them.

    Args:
        source: A folder of images, a lab's folder with ``images/`` and ``lab.yaml``, or one image or slide.
        mpp: Microns per pixel of images of which neither the file nor images.csv nor lab.yaml states another one.
        labs: Folder of the datasets of labs, of which one may state the bit depth and the ranges of channels.

    Raises:
        DataError: There are none, or two statements of a pixel size differ.
        LabError: ``lab.yaml`` or ``images.csv`` is invalid.
    """
    found, folder = _images(source), _metadata_folder(source)
    lab = read_lab_metadata(folder) if (folder / LAB_FILE).is_file() else None
    sizes, notes = _pixel_sizes(folder, found.images, None if lab is None else lab.mpp, mpp, whole=source.is_dir())
    channels, channel_notes = _channels(folder, found.images, lab, labs)
    depth, depth_notes = (None, list[str]()) if channels else _bit_depth(found.images, lab, labs)
    name, reading = None if lab is None else lab.lab, ReadOptions(depth, channels)
    notes = [*notes, *depth_notes, *channel_notes]
    return BatchImages(tuple(found.images), found.left_out, name, sizes, reading, tuple(notes))


def _images(source: Path) -> ImageFolder:
    if source.is_file() or source.name.lower().endswith(ZARR_SUFFIXES):
        return ImageFolder((source,), {})
    if not source.is_dir():
        hint = " Write an address into a file such as slide.zarr.url, and give that." if ":/" in str(source) else ""
        raise DataError(f"{source}: expected an image or a folder of images, found none. Check the path.{hint}")
    place = source / "images" if (source / "images").is_dir() else source
    found = list_images(place)
    if not found.images:
        others = "; ".join(f"{name}: {reason}" for name, reason in list(found.left_out.items())[:5])
        raise DataError(
            f"{place}: expected images or slides ({', '.join(readable_suffixes())}), found none"
            f"{f' ({others})' if others else ''}. Check the path."
        )
    return found


def _metadata_folder(source: Path) -> Path:
    """Folder of images.csv and lab.yaml: for a single image of a lab's images/, that of the lab."""
    if source.is_dir() and not source.name.lower().endswith(ZARR_SUFFIXES):
        return source
    folder = source.absolute().parent
    return folder.parent if folder.name == "images" and (folder.parent / "lab.yaml").is_file() else folder


def _pixel_sizes(
    folder: Path, images: Sequence[Path], lab_mpp: float | None, option: float | None, *, whole: bool
) -> tuple[Mapping[str, StatedMpp], list[str]]:
    """Pixel sizes by file name, from images.csv, otherwise from ``--mpp`` or lab.yaml; and what is to be reported."""
    table, sizes, notes = read_image_table(folder), dict[str, StatedMpp](), list[str]()
    if option is not None and lab_mpp is not None and not same_mpp(option, lab_mpp):
        raise DataError(
            f"{folder}: expected one pixel size, got {option} microns of --mpp and {lab_mpp} of lab.yaml. Correct one "
            "of them, or leave --mpp out."
        )
    for path in images:
        entry = table.pop(image_key(image_name(path.name)), None)
        if entry is None or entry.mpp is None:
            if option is not None or lab_mpp is not None:
                sizes[path.name] = StatedMpp(option or lab_mpp or 0.0, "lab.yaml" if option is None else "--mpp")
            continue
        if option is not None and not same_mpp(option, entry.mpp):
            raise DataError(
                f"{path}: expected one pixel size, got {option} microns of --mpp and {entry.mpp} of images.csv. "
                "Correct one of them, or leave --mpp out."
            )
        sizes[path.name] = StatedMpp(entry.mpp, "images.csv", overrides=True)
        if (own := file_mpp(path)) is not None and not same_mpp(own, entry.mpp):
            notes.append(f"{path.name}: {entry.mpp} microns per pixel of images.csv override {own} of the file")
    if whole and table:
        missing = ", ".join(entry.file for entry in list(table.values())[:5])
        notes.append(f"images.csv has {len(table)} lines of images that are not there: {missing}")
    return sizes, notes


def _bit_depth(images: Sequence[Path], lab: LabMetadata | None, labs: Path) -> tuple[int | None, list[str]]:
    """Bit depth of images of 16 bits: the lab's, that of its dataset, or one that holds those of all images."""
    if lab is not None and lab.bit_depth is not None:
        return lab.bit_depth, []
    if lab is not None and (labs / lab.lab / "lab.yaml").is_file():
        depth = read_lab_metadata(labs / lab.lab).bit_depth
        if depth is not None:
            return depth, []
    depths = []
    for path in images:
        with suppress(DataError):  # reported when it is read
            depths.append(measured_depth(path))
    if not (known := [depth for depth in depths if depth is not None]):
        return None, []
    return max(known), [
        f"{len(known)} images of 16 bits do not state how many of them are used: {max(known)} hold nearly all values. "
        "State bit_depth in lab.yaml if it is another one"
    ]


def _channels(
    folder: Path, images: Sequence[Path], lab: LabMetadata | None, labs: Path
) -> tuple[tuple[Channel, ...], list[str]]:
    """Channels of the images: the lab's, with the ranges of its dataset, or with those that are measured here."""
    if lab is None:
        return (), []
    if (folder / MANIFEST_FILE).is_file():  # of a dataset, whose images have the channels in place of red, green, blue
        return tuple(Channel(name, (number,)) for number, name in enumerate(lab.channel_names, start=1)), []
    channels = lab.channels
    if (labs / lab.lab / LAB_FILE).is_file():
        try:
            channels = merge_channels(read_lab_metadata(labs / lab.lab).channels, channels)
        except ValueError as error:
            raise LabError(f"{folder / LAB_FILE}: {error}. Correct it.") from error
    if not channels:
        return (), []
    measured = measure_ranges(images, channels)
    if measured == channels:
        return channels, []
    ranges = "; ".join(f"{it.name} {', '.join(f'{low:g} to {high:g}' for low, high in it.ranges)}" for it in measured)
    return measured, [f"values of 16 bits are scaled by the range of these images: {ranges}. State range in lab.yaml"]
