"""Checks of an incoming dataset, file by file, before any of it is ingested."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg import limits
from microseg.annotations.classes import IGNORE, LabelClasses
from microseg.annotations.coco import image_names
from microseg.annotations.files import AnnotatedImage, open_annotation
from microseg.annotations.formats import OUTLINES, annotation_suffixes, is_annotation, read_annotation
from microseg.annotations.index_masks import mask_advice
from microseg.annotations.labels import LabelRegion
from microseg.annotations.raster_masks import RasterMasks, class_of_file
from microseg.datasets.lab import image_key, image_name
from microseg.errors import ImageReadError, LabError, ResourceLimitError
from microseg.escaping import printable
from microseg.files import unsafe_reason
from microseg.slides import images
from microseg.slides.folder import is_system_file
from microseg.slides.images import IMAGE_SUFFIXES, image_digest, image_orientation, measured_depth, read_image
from microseg.slides.openslide_reader import slide_parts
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import image_pixels, slide_suffixes
from microseg.slides.tiff_layout import is_tiff

__all__ = [
    "MIN_SIDE",
    "CheckedImage",
    "IncomingFiles",
    "RejectedFile",
    "Save",
    "check_images",
    "check_pair",
    "count_slides",
    "is_system_file",
    "list_files",
    "measure_bit_depth",
]

_TURNED = {
    1: "upright", 2: "mirrored", 3: "turned by 180°", 4: "upside down", 5: "transposed", 6: "turned by 90°",
    7: "transposed and turned by 180°", 8: "turned by 270°",
}  # fmt: skip
_MASK_NAMES = re.compile(
    r"^(?:mask|label|labels|seg|gt)[ _.-]+|[ _.-]+(?:(?:class|index|semantic|instance|inst|binary|label)[ _.-]*)?"
    r"(?:masks?|labels?|segmentation|seg|gt|groundtruth|annotation|anno|cp_masks)$"
)
MIN_SIDE = 16  # pixels; smaller images are useless for training

_PLAIN_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM"}
_WORKERS = 4

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


@dataclass(frozen=True)
class RejectedFile:
    """One file that is not ingested.

    Attributes:
        file: Path in the incoming dataset, with forward slashes.
        reason: What was expected, what was found, and what to do.
        slide: The whole slide that this file is, or is a part of, as a path in the incoming dataset; else None.
    """

    file: str
    reason: str
    slide: str | None = None


@dataclass
class IncomingFiles:
    """The files of an incoming dataset.

    Attributes:
        source: Folder of the incoming dataset.
        pairs: Images to check, each with its annotation or None.
        rejected: Rejected files, by path.
        skipped: Files of the operating system (``.DS_Store``, ``Thumbs.db`` …), which do not belong to the dataset.
        images: Image files by `image_key`.
        annotations: Annotation files by `image_key`.
        roots: Folders that links may lead to; the source is one.
        paths: Path of each rejected file, whose name may be shown otherwise.
        unread: Annotation files that must not be opened, by `image_key`.
    """

    source: Path
    roots: tuple[Path, ...] = ()
    pairs: list[tuple[Path, Path | None]] = field(default_factory=list)
    rejected: dict[str, RejectedFile] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    images: dict[str, list[Path]] = field(default_factory=dict)
    annotations: dict[str, list[Path]] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    unread: dict[str, Path] = field(default_factory=dict)

    def path_of(self, path: Path) -> str:
        """Path in the incoming dataset, with forward slashes, and in characters that can be shown."""
        return printable(path.relative_to(self.source).as_posix())

    def reject(self, path: Path, reason: str, slide: Path | None = None) -> None:
        """Reject a file, which may be a slide or a part of one; the first reason is kept."""
        file = self.path_of(path)
        whole = None if slide is None else self.path_of(slide)
        self.paths[file] = path
        self.rejected.setdefault(file, RejectedFile(file, reason.removeprefix(f"{path}: "), whole))


def list_files(source: Path, classes: LabelClasses, roots: Iterable[Path] = ()) -> IncomingFiles:
    """List the files of an incoming dataset and pair images with annotations, by their names.

    An annotation has the name of its image; outlines may lie beside it, and one COCO file may be for many images. One
    mask for each class is ``<image>_<class>.png``, or ``<class>/<image>.png``. An image without annotation is
    unlabelled. Files of the same name, of other formats, in subfolders, and whole
    slides with all their files are rejected: networks are trained on images.

    Args:
        source: Folder of the incoming dataset.
        classes: The classes, and their names in annotation files.
        roots: Folders outside it that links in it may lead to; others are not followed, and their files are rejected.

    Returns:
        The pairs to check, and the files that are rejected or skipped by their names.

    Raises:
        LabError: The folder or its ``images/`` is missing or empty.
    """
    if not source.is_dir():
        raise LabError(f"{source}: expected the folder of a lab's images, found none. Check the path.")
    if not (source / "images").is_dir():
        raise LabError(f"{source}: expected a folder images/ in it, found none. Put the lab's images into images/.")
    files = IncomingFiles(source, (source, *roots))
    suffixes = annotation_suffixes()
    beside = suffixes.get(OUTLINES, ())
    listed = _list_folder(files, "images", (*IMAGE_SUFFIXES, *beside))
    for path in (path for paths in listed.values() for path in paths):
        outlines = path.name.lower().endswith(beside) and path.suffix.lower() not in IMAGE_SUFFIXES
        if outlines and not is_annotation(path, classes):
            files.reject(path, "expected an image or its annotation, got neither. Move it out of images/.")
            continue
        known = files.annotations if outlines else files.images
        known.setdefault(image_key(image_name(path, beside if outlines else IMAGE_SUFFIXES)), []).append(path)
    if not files.images and not files.rejected:
        raise LabError(f"{source / 'images'}: expected images, found none. Put the lab's images into it.")
    for folder, endings in suffixes.items():
        for key, paths in _list_folder(files, folder, endings, classes).items():
            files.annotations.setdefault(key, []).extend(paths)
    _find_owners(files, classes)
    _reject_misnamed(files)

    for key, paths in files.images.items():
        annotations = files.annotations.get(key, [])
        if (unread := files.unread.get(key)) is not None:  # without it the image would count as unlabelled
            for path in (*paths, *annotations):
                files.reject(path, f"its annotation {unread.name} is rejected: see its reason.")
            continue
        if all(files.path_of(path) in files.rejected for path in paths):
            continue
        if len(annotations) > 1 and all(class_of_file(path, classes) for path in annotations):
            annotations = annotations[:1]  # its format reads all of them
        if len(paths) == 1 and len(annotations) <= 1:
            files.pairs.append((paths[0], annotations[0] if annotations else None))
            continue
        for same in (paths, annotations):
            for path in same if len(same) > 1 else ():
                others = ", ".join(other.name for other in same if other is not path)
                files.reject(
                    path,
                    f"expected a unique name, got the same as {others} (suffix and case do not count). "
                    "Rename it, or keep only one of them.",
                )
        names = " and ".join(path.name for path in annotations)
        files.reject(paths[0], f"expected one annotation, got {names}. Keep only one of them.")
    return files


def check_images(
    files: IncomingFiles,
    classes: LabelClasses,
    *,
    mpp: Callable[[Path], float | None] = lambda _image: None,
    bit_depth: int | None = None,
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
        bit_depth: Bits that hold the values of images of 16 bits, see `read_image`.
        save: Called with the content of each image that can be ingested.
        progress: Called with the number of images checked and their total.

    Returns:
        The accepted images, by name.
    """
    usable: list[CheckedImage] = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        checks = pool.map(
            lambda pair: check_pair(pair[0], pair[1], classes, save, mpp(pair[0]), bit_depth), files.pairs
        )
        for done, ((image, _), found) in enumerate(zip(files.pairs, checks, strict=True), start=1):
            if isinstance(found, CheckedImage):
                usable.append(found)
            else:
                for path, reason in found.items():
                    files.reject(path, reason, slide=path if path == image and _is_large_tiff(path) else None)
            if progress is not None:
                progress(done, len(files.pairs))

    first: dict[str, CheckedImage] = {}
    for checked in sorted(usable, key=lambda checked: (checked.annotation is None, checked.name)):
        if (same_content := first.setdefault(checked.sha256, checked)) is not checked:
            kept = same_content.image.name
            files.reject(checked.image, f"expected each image once, got the same content as {kept}. Remove one.")
    _reject_single_annotations(files)
    return tuple(sorted(first.values(), key=lambda checked: checked.name))


def check_pair(
    image: Path,
    annotation: Path | None,
    classes: LabelClasses,
    save: Save | None = None,
    mpp: float | None = None,
    bit_depth: int | None = None,
) -> CheckedImage | dict[Path, str]:
    """Check an image and its annotation.

    Args:
        image: Image file.
        annotation: Annotation file; None when unlabelled.
        classes: The classes, and what annotation files mean.
        save: Called with the content if both can be used.
        mpp: Microns per pixel that the lab states of the image; those of the file where None.
        bit_depth: See `check_images`.

    Returns:
        The checked image, or the reasons by path why it or its annotation cannot be used.
    """
    try:
        arguments = (image, annotation, classes, mpp, bit_depth)
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
    image: Path, annotation: Path | None, classes: LabelClasses, mpp: float | None, bit_depth: int | None
) -> tuple[CheckedImage, Pixels, bytes | None, LabelRegion | None] | dict[Path, str]:
    """Read and check an image and its annotation; the arguments are those of `check_pair`."""
    try:
        png = _read_plain_png(image)
        depth = None if bit_depth is None or png is not None else measured_depth(image)
        if depth is not None and bit_depth is not None and depth > bit_depth:
            raise ImageReadError(
                f"expected values of at most {bit_depth} bits, as in the lab's other images of 16 bits, got {depth}. "
                "Send it under another lab name, or export it as 8-bit RGB."
            )
        pixels = read_image(image, png, bit_depth)  # (H, W, 3)
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
            found.append(limits.run_limited(str(image), measured_depth, image))
    return max((depth for depth in found if depth is not None), default=None)


def count_slides(rejected: Iterable[RejectedFile]) -> int:
    """Count the whole slides among rejected files; a slide of several files counts once."""
    return len({file.slide for file in rejected if file.slide is not None})


# ---- names


def _list_folder(
    files: IncomingFiles, folder: str, suffixes: tuple[str, ...], classes: LabelClasses | None = None
) -> dict[str, list[Path]]:
    """Group the usable files of a folder by `image_key`; the others are skipped or rejected.

    With ``classes``, also those in a subfolder of ``masks/`` with the name of a class.
    """
    usable: dict[str, list[Path]] = defaultdict(list)
    root = files.source / folder
    found = sorted(root.rglob("*")) if root.is_dir() else []
    slide_files = slide_suffixes()
    slides = [path for path in found if folder == "images" and path.suffix.lower() in slide_files]
    slides = [slide for slide in slides if not unsafe_reason(slide, files.roots)]
    parts = {part: slide for slide in slides for part in (slide, *slide_parts(slide))}
    for path in found:
        if path.is_dir():
            continue
        if any(is_system_file(part) for part in path.relative_to(root).parts):
            files.skipped.append(files.path_of(path))
        elif reason := unsafe_reason(path, files.roots):
            files.reject(path, reason)
            if folder != "images" or path.suffix.lower() not in IMAGE_SUFFIXES:
                files.unread[image_key(image_name(path, suffixes))] = path
            else:
                usable[image_key(image_name(path, suffixes))].append(path)  # its annotation is rejected, too
        elif slide := parts.get(path):
            files.reject(path, _slide_reason(path, slide), slide)
        elif path.parent != root and not (classes and path.parent.parent == root and class_of_file(path, classes)):
            files.reject(
                path,
                f"expected files directly in {folder}/, got one in a subfolder. Move it up; its patient or slide is "
                "stated in images.csv.",
            )
        elif not path.name.isprintable() or path.name != path.name.encode(errors="replace").decode():
            files.reject(path, "expected a file name of printable Unicode characters, got others. Rename it.")
        elif not path.name.lower().endswith(suffixes):
            files.reject(
                path,
                f"expected {', '.join(suffixes)}, got {path.suffix or 'no suffix'}. Export it, or regions of it, as "
                "one of these.",
            )
        else:
            usable[image_key(image_name(path, suffixes))].append(path)
    return usable


def _find_owners(files: IncomingFiles, classes: LabelClasses) -> None:
    """Give annotations that have not the name of an image to the images that they are for."""
    for key in [key for key in files.annotations if key not in files.images]:
        for path in files.annotations.pop(key):
            found = class_of_file(path, classes)
            owners = {key} if found is None else {image_key(found[0])}
            if found is None and OUTLINES in (path.parent.name, path.parent.parent.name):
                with suppress(ImageReadError):  # reported below: it has no image
                    names = image_names(open_annotation(path).json)
                    owners = {image_key(image_name(name.replace("\\", "/"))) for name in names}
            for owner in owners & files.images.keys() or {key}:
                files.annotations.setdefault(owner, []).append(path)


def _reject_misnamed(files: IncomingFiles) -> None:
    """Reject ``x_mask.png`` and its image ``x.png``, which would otherwise be taken for unlabelled."""
    for key in [key for key in files.annotations if key not in files.images]:
        owner = _MASK_NAMES.sub("", key)
        if owner in files.images and owner not in files.annotations:
            for path in files.annotations[key]:
                image = files.images[owner][0]
                right = f"{image_name(image)}{path.suffix}"
                files.reject(path, f"expected the name of its image, {right}, got {path.name}. Rename it to {right}.")
                files.reject(
                    image, f"its mask seems to be {path.name}, which has another name. Rename the mask to {right}."
                )


def _reject_single_annotations(files: IncomingFiles) -> None:
    """Reject annotations whose image is missing or rejected; one for several images only if all of them are."""
    used = {
        path
        for key, paths in files.annotations.items()
        for path in paths
        if key in files.images and files.path_of(files.images[key][0]) not in files.rejected
    }
    for key, paths in files.annotations.items():
        for path in set(paths) - used:
            if key not in files.images:
                files.reject(
                    path, "expected an image of the same name in images/, found none. Send the image, or rename."
                )
            elif image := files.rejected.get(files.path_of(files.images[key][0])):
                files.reject(path, f"its image {files.images[key][0].name} is rejected: {image.reason}")


def _slide_reason(path: Path, slide: Path) -> str:
    if path != slide:
        return f"expected an image, got a part of the whole slide {slide.name}, which is rejected too: see its reason."
    return (
        f"expected {', '.join(IMAGE_SUFFIXES)}, got a whole slide ({path.suffix}). Export regions of it as PNG "
        "or TIFF into images/, with their slide (group) and pixel size (mpp) in images.csv; the slide itself is for "
        "microseg segment."
    )


# ---- content


def _is_large_tiff(path: Path) -> bool:
    """Whether a rejected file is a TIFF of more pixels than are read as an image: a slide with the name of an image."""
    return path.is_file() and is_tiff(path) and (image_pixels(path) or 0) > images.MAX_PIXELS


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
