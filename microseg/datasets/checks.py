"""Checks of an incoming dataset, file by file, before any of it is ingested."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg import limits
from microseg.annotations.classes import IGNORE, LabelClasses
from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import read_annotation
from microseg.annotations.index_masks import mask_advice
from microseg.annotations.labels import LabelRegion
from microseg.annotations.raster_masks import RasterMasks
from microseg.datasets.image_table import image_name
from microseg.datasets.listing import IncomingFiles, reject_single_annotations
from microseg.errors import ImageReadError, ResourceLimitError
from microseg.slides import limited
from microseg.slides.channels import ReadOptions
from microseg.slides.decoding import image_orientation
from microseg.slides.images import image_digest, measured_depth, read_image
from microseg.slides.pixel_size import image_mpp

__all__ = [
    "MIN_SIDE",
    "CheckedImage",
    "Save",
    "check_images",
    "check_pair",
    "measure_bit_depth",
]

_TURNED = {
    1: "upright", 2: "mirrored", 3: "turned by 180°", 4: "upside down", 5: "transposed", 6: "turned by 90°",
    7: "transposed and turned by 180°", 8: "turned by 270°",
}  # fmt: skip
MIN_SIDE = 16  # pixels; smaller images are useless for training

_PLAIN_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM"}
_WORKERS = 4
_WHITE, _MOST_WHITE = 255, 0.25  # share of pixels beyond the range of a channel

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CheckedImage:
    """One image that can be ingested, with its annotation.

    Attributes:
        name: Name of the image, without suffix.
        image: Path of the image.
        annotation: Path of its annotation; None when unlabelled.
        width: Pixels.
        height: Pixels.
        mpp: Microns per pixel stated by the file itself; None when it states none.
        sha256: `image_digest` of the image.
        labels_sha256: `image_digest` of the labels; None when unlabelled.
        notes: What of the annotation is not used, or was changed.
    """

    name: str
    image: Path
    annotation: Path | None
    width: int
    height: int
    mpp: float | None
    sha256: str
    labels_sha256: str | None
    notes: tuple[str, ...] = ()

    @property
    def has_outlines(self) -> bool:
        """Whether its labels are outlines, which may be corrections of earlier ones, and not a mask."""
        return self.annotation is not None and RasterMasks.folder not in self.annotation.parts[-3:-1]


Save = Callable[[CheckedImage, Pixels, bytes | None, LabelRegion | None], None]
"""Called from several threads with an image that can be ingested: its pixels (H, W, 3), the bytes of its file where it
is an 8-bit RGB PNG without metadata, and its labels where labelled."""


def check_images(
    files: IncomingFiles,
    classes: LabelClasses,
    *,
    mpp: Callable[[Path], float | None] = lambda _image: None,
    reading: ReadOptions | None = None,
    save: Save | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CheckedImage, ...]:
    """Check every image of an incoming dataset and its annotation; each is decoded once.

    An image and its annotation are rejected together. Of images with the same content the first is accepted, a
    labelled one before an unlabelled one.

    Args:
        files: From `list_files`; what is rejected is added to it.
        classes: The classes, and what annotation files mean.
        mpp: Microns per pixel that the lab states of an image; where None, the file's own are used.
        reading: Bit depth and channels, see `read_image`.
        save: Called with the content of each image that can be ingested.
        progress: Called with the number of images checked and their total.

    Returns:
        The accepted images, by name.
    """
    usable: list[CheckedImage] = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        checks = pool.map(lambda pair: check_pair(pair[0], pair[1], classes, save, mpp(pair[0]), reading), files.pairs)
        for done, found in enumerate(checks, start=1):
            if isinstance(found, CheckedImage):
                usable.append(found)
            else:
                for path, reason in found.items():
                    files.reject(path, reason)
            if progress is not None:
                progress(done, len(files.pairs))

    first: dict[str, CheckedImage] = {}
    for checked in sorted(usable, key=lambda checked: (checked.annotation is None, checked.name)):
        if (same_content := first.setdefault(checked.sha256, checked)) is not checked:
            kept = same_content.image.name
            files.reject(checked.image, f"expected each image once, got the same content as {kept}. Remove one.")
    reject_single_annotations(files)
    return tuple(sorted(first.values(), key=lambda checked: checked.name))


def check_pair(
    image: Path,
    annotation: Path | None,
    classes: LabelClasses,
    save: Save | None = None,
    mpp: float | None = None,
    reading: ReadOptions | None = None,
) -> CheckedImage | dict[Path, str]:
    """Check an image and its annotation.

    Args:
        image: Image file.
        annotation: Annotation file; None when unlabelled.
        classes: The classes, and what annotation files mean.
        save: Called with the content if both can be used.
        mpp: Microns per pixel that the lab states of the image; those of the file where None.
        reading: See `check_images`.

    Returns:
        The checked image, or the reasons by path why it or its annotation cannot be used.
    """
    try:
        arguments = (image, annotation, classes, mpp, reading or ReadOptions())
        found = limits.run_limited(str(image), _read_pair, *arguments, seconds=2 * limits.SECONDS)
    except ResourceLimitError as error:
        return {image: str(error)} | ({} if annotation is None else {annotation: str(error)})
    if isinstance(found, dict):
        return found
    checked, pixels, png, labels = found
    if save is not None:
        save(checked, pixels, png, labels)
    return checked


def _read_pair(
    image: Path, annotation: Path | None, classes: LabelClasses, mpp: float | None, reading: ReadOptions
) -> tuple[CheckedImage, Pixels, bytes | None, LabelRegion | None] | dict[Path, str]:
    """Read and check an image and its annotation; the arguments are those of `check_pair`."""
    try:
        png = None if reading.channels else _read_plain_png(image)
        depth = None if reading.bit_depth is None or png is not None else measured_depth(image)
        if depth is not None and reading.bit_depth is not None and depth > reading.bit_depth:
            raise ImageReadError(
                f"expected values of at most {reading.bit_depth} bits, as in the lab's other images of 16 bits, got "
                f"{depth}. Send it under another lab name, or export it as 8-bit RGB."
            )
        pixels = read_image(image, png, reading)  # (H, W, 3)
        _check_ranges(pixels, reading)
    except ImageReadError as error:
        return {image: str(error)}
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return {image: f"expected at least {MIN_SIDE} pixels a side, got {width} x {height}. Send a larger region."}
    labels, own_mpp = None, image_mpp(image)
    notes: tuple[str, ...] = ()
    if annotation is not None:
        try:
            found = read_annotation(annotation, AnnotatedImage(image.name, width, height, mpp or own_mpp), classes)
            labels, notes = found.read(), found.notes
            raster, turned = RasterMasks.folder in annotation.parts[-3:-1], image_orientation(image)
            if raster and turned != (mask_turned := image_orientation(annotation)):
                raise ImageReadError(
                    f"expected the orientation of its image, {turned} ({_TURNED[turned]}), got {mask_turned} "
                    f"({_TURNED[mask_turned]}) in EXIF or TIFF tags: it is not known whether the mask was drawn on the "
                    "turned image. Save both upright, without the tag."
                )
            if not raster and turned != 1:
                raise ImageReadError(
                    "expected outlines of an image that is stored upright, got one that states a rotation: it is not "
                    "known whether their coordinates follow it. Save the image upright, and outline that."
                )
            _check_labels(labels.classes, annotation, classes)
        except ImageReadError as error:
            reason = str(error).removeprefix(f"{annotation}: ")
            return {annotation: reason, image: f"its annotation {annotation.name} is rejected: {reason}"}
    checked = CheckedImage(
        name=image_name(image),
        image=image,
        annotation=annotation,
        width=width,
        height=height,
        mpp=own_mpp,
        sha256=image_digest(pixels),
        labels_sha256=None if labels is None else image_digest(labels.classes),
        notes=notes,
    )
    return checked, pixels, png, labels


def measure_bit_depth(files: IncomingFiles) -> int | None:
    """Bits that hold the values of all images of 16 bits that do not state fewer; None where there are none."""
    found = []
    for image, _ in files.pairs:
        with suppress(ImageReadError):  # reported when it is checked
            found.append(limited.measured_depth(image))
    return max((depth for depth in found if depth is not None), default=None)


# ---- content


def _check_ranges(pixels: Pixels, reading: ReadOptions) -> None:
    """Refuse an image of which a channel is much brighter than the range of the lab's images."""
    for number, channel in enumerate(reading.channels):
        white = float((pixels[..., number] == _WHITE).mean())
        if channel.ranges and white > _MOST_WHITE:
            high = max(high for _, high in channel.ranges)
            raise ImageReadError(
                f"expected values of channel {channel.name} up to {high:g}, as in the lab's other images, got more in "
                f"{white:.0%} of the image. Send it under another lab name, or state a larger range in lab.yaml before "
                "the first images are ingested."
            )


def _check_labels(labels: Pixels, annotation: Path, classes: LabelClasses) -> None:
    """Check the labels (H, W) of an image."""
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    names = classes.names
    known = ", ".join(f"{index} = {name}" for index, name in enumerate(names))
    if annotation.parent.name == RasterMasks.folder and IGNORE in found and not any(0 < it < IGNORE for it in found):
        raise ImageReadError(
            f"expected class indices ({known}), got only {' and '.join(map(str, found))}. {IGNORE} means 'ignore', so "
            f"this mask has no labels to train on; write 1 where it is {names[1]}, or state `masks: binary` in "
            f"lab.yaml where {IGNORE} is the class."
        )
    if found == [IGNORE]:
        raise ImageReadError("expected labels, got none: nothing in the image is annotated. Leave the file out.")
    if unknown := [value for value in found if value >= len(names) and value != IGNORE]:
        raise ImageReadError(
            f"expected class indices ({known}; {IGNORE} = ignore), got {', '.join(map(str, unknown[:8]))}"
            f"{' …' if len(unknown) > 8 else ''}. {mask_advice(np.asarray(found))}"
        )


def _read_plain_png(path: Path) -> bytes | None:
    """Bytes of a file that is an 8-bit RGB PNG with nothing but pixels; None for other files."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            header = file.read(26)
            if header[:8] != b"\x89PNG\r\n\x1a\n" or header[24:26] != b"\x08\x02":  # bit depth 8, color type RGB
                return None
            content = header + file.read()
    except OSError:  # reported by `read_image`
        return None
    at, chunks = 8, set[bytes]()
    while start := content[at : at + 8]:
        chunks.add(start[4:])
        at += 12 + int.from_bytes(start[:4])  # length, type, content and checksum
    return content if chunks <= _PLAIN_PNG_CHUNKS else None
