"""The files of an incoming dataset: its images and slides with their annotations, by their names."""

import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from microseg.annotations.classes import LabelClasses
from microseg.annotations.coco import image_names
from microseg.annotations.files import open_annotation
from microseg.annotations.formats import OUTLINES, annotation_suffixes, is_annotation
from microseg.annotations.raster_masks import class_of_file
from microseg.datasets.image_table import image_key, image_name
from microseg.errors import ImageReadError, LabError
from microseg.escaping import printable
from microseg.files import is_below, unsafe_reason
from microseg.slides.folder import is_system_file
from microseg.slides.images import IMAGE_SUFFIXES
from microseg.slides.limited import is_slide
from microseg.slides.parts import slide_owners, slide_parts
from microseg.slides.readers import slide_suffixes

__all__ = [
    "SLIDE_MEGAPIXELS",
    "IncomingFiles",
    "RejectedFile",
    "count_slides",
    "list_files",
    "reject_single_annotations",
]

SLIDE_MEGAPIXELS = 16.0
"""Larger TIFF files are slides: they stay as they are, and are read by regions."""
_TIFF = (".tif", ".tiff")
_SMALL_FILE = 2**16  # bytes; no slide

_MASK_NAMES = re.compile(
    r"^(?:mask|label|labels|seg|gt)[ _.-]+|[ _.-]+(?:(?:class|index|semantic|instance|inst|binary|label)[ _.-]*)?"
    r"(?:masks?|labels?|segmentation|seg|gt|groundtruth|annotation|anno|cp_masks)$"
)


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
        slides: Slides to check, each with its annotation or None.
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
    slides: list[tuple[Path, Path | None]] = field(default_factory=list)
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
    unlabelled. TIFF files of over ``SLIDE_MEGAPIXELS`` are slides; a slide may be a folder (OME-Zarr, DICOM). Files of
    the same name, of other formats, and in subfolders are rejected.

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
    slides = slide_suffixes()
    listed = _list_folder(files, "images", (*IMAGE_SUFFIXES, *slides, *beside))
    for path in (path for paths in listed.values() for path in paths):
        image = path.name.lower().endswith((*IMAGE_SUFFIXES, *slides)) or path.is_dir()
        outlines = path.name.lower().endswith(beside) and not image
        if outlines and not is_annotation(path, classes):
            files.reject(path, "expected an image or its annotation, got neither. Move it out of images/.")
            continue
        known = files.annotations if outlines else files.images
        known.setdefault(image_key(image_name(path, beside) if outlines else image_name(path)), []).append(path)
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
            pair = paths[0], annotations[0] if annotations else None
            (files.slides if _is_slide(paths[0]) else files.pairs).append(pair)
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


def count_slides(rejected: Iterable[RejectedFile]) -> int:
    """Count the whole slides among rejected files; a slide of several files counts once."""
    return len({file.slide for file in rejected if file.slide is not None})


def _is_slide(path: Path) -> bool:
    """Whether an image of an incoming dataset is kept as a slide: one by its kind, or a TIFF of many pixels."""
    if path.is_dir() or path.name.lower().endswith(slide_suffixes()):
        return True
    with suppress(ImageReadError, OSError):  # reported when it is checked
        large = path.suffix.lower() in _TIFF and path.stat().st_size > _SMALL_FILE
        return large and is_slide(path, megapixels=SLIDE_MEGAPIXELS)
    return False


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
    outside = {path for path in found if path.is_dir() and not is_below(path, files.roots)}  # links, not followed
    safe = (
        path
        for path in found
        if not outside & {path, path.with_suffix("")} and (path.is_dir() or not unsafe_reason(path, files.roots))
    )
    owners = slide_owners(safe, slide_suffixes()) if folder == "images" else {}
    for path in found:
        owner = owners.get(path)
        if (path.is_dir() and owner is None and path not in outside) or owner not in (None, path):
            continue  # a part of a slide is checked with it
        if any(is_system_file(part) for part in path.relative_to(root).parts):
            files.skipped.append(files.path_of(path))
        elif reason := _unsafe_reason(path, files.roots):
            files.reject(path, reason)
            if folder != "images" or not path.name.lower().endswith((*IMAGE_SUFFIXES, *slide_suffixes())):
                files.unread[image_key(image_name(path, suffixes))] = path
            else:
                usable[image_key(image_name(path, suffixes))].append(path)  # its annotation is rejected, too
        elif path.parent != root and not (classes and path.parent.parent == root and class_of_file(path, classes)):
            files.reject(
                path,
                f"expected files directly in {folder}/, got one in a subfolder. Move it up; its patient or slide is "
                "stated in images.csv.",
            )
        elif not path.name.isprintable() or path.name != path.name.encode(errors="replace").decode():
            files.reject(path, "expected a file name of printable Unicode characters, got others. Rename it.")
        elif owner is None and not path.name.lower().endswith(suffixes):
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


def reject_single_annotations(files: IncomingFiles) -> None:
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


def _unsafe_reason(path: Path, roots: tuple[Path, ...]) -> str:
    """Why a file, or one of a slide, is not opened; see `unsafe_reason`."""
    for folder in (path, path.with_suffix("")):  # the latter of an MRXS
        if folder.is_dir() and not is_below(folder, roots):
            return unsafe_reason(folder, roots)
    if not path.is_dir():
        reason = unsafe_reason(path, roots)
        if reason or not path.name.lower().endswith(slide_suffixes()):
            return reason
    for part in slide_parts(path):
        if reason := unsafe_reason(part, roots):
            return f"its part {part.name}: {reason}"
    return ""
