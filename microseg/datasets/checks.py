"""Checks of a lab's delivery, file by file, before anything of it is taken over."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.datasets.lab import image_key, image_name
from microseg.errors import ImageReadError, LabError
from microseg.slides import images
from microseg.slides.images import IMAGE_SUFFIXES, image_digest, is_tiff, read_image
from microseg.slides.openslide_reader import slide_parts
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import slide_suffixes

__all__ = ["MIN_SIDE", "CheckedImage", "LabCheck", "RejectedFile", "check_lab_files", "check_pair", "count_slides"]

_SYSTEM_FILES = ("thumbs.db", "desktop.ini")
_WORKERS = 4


@dataclass(frozen=True)
class RejectedFile:
    """One file that is not taken over.

    Attributes:
        file: Path in the delivery, with forward slashes.
        reason: What was expected, what came, and what to do.
        slide: The whole slide that this file is, or is a part of, as a path in the delivery; None when it is neither.
    """

    file: str
    reason: str
    slide: str | None = None


@dataclass(frozen=True)
class CheckedImage:
    """One image that can be taken over, with its mask.

    Attributes:
        name: Its name, without suffix.
        image: Where it lies.
        mask: Where its mask lies; None when unlabelled.
        width: Pixels.
        height: Pixels.
        mpp: Microns per pixel that the file itself states; None when it states none.
        sha256: `image_digest` of the image.
        plain: Whether the file is an 8-bit RGB PNG without metadata, which can be copied as it is.
    """

    name: str
    image: Path
    mask: Path | None
    width: int
    height: int
    mpp: float | None
    sha256: str
    plain: bool


@dataclass(frozen=True)
class LabCheck:
    """What the checks of a delivery found.

    Attributes:
        accepted: Images that can be taken over, by name.
        refused: Files that cannot, by path; an image and its mask are refused together.
        skipped: Files of the operating system (``.DS_Store``, ``Thumbs.db`` …), which are no part of the delivery.
    """

    accepted: tuple[CheckedImage, ...]
    refused: tuple[RejectedFile, ...]
    skipped: tuple[str, ...]


def check_lab_files(
    source: Path, classes: Sequence[str], *, progress: Callable[[int, int], None] | None = None
) -> LabCheck:
    """Check every file in ``images/`` and ``masks/`` of a lab's delivery; nothing is changed.

    An image without a mask is accepted as unlabelled, also beside labelled ones. Of images with the same content the
    first is accepted, a labelled one before an unlabelled one. Of files with the same name none is, as nobody can
    tell which one is meant. Whole slides are refused, with all the files that they consist of: networks learn from
    images.

    Args:
        source: The delivery's folder.
        classes: Names of the classes in the order of their mask values, background first.
        progress: Called with the number of images checked and of all.

    Returns:
        What can be taken over, and why the rest cannot.

    Raises:
        LabError: The folder or its ``images/`` is missing or empty.
    """
    if not source.is_dir():
        raise LabError(f"{source}: expected the folder of a lab's images, found none. Check the path.")
    if not (source / "images").is_dir():
        raise LabError(f"{source}: expected a folder images/ in it, found none. Put the lab's images into images/.")
    findings = _Findings(source)
    images, masks = findings.list_files("images"), findings.list_files("masks")
    if not images and not findings.refused:
        raise LabError(f"{source / 'images'}: expected images, found none. Put the lab's images into it.")

    pairs: list[tuple[Path, Path | None]] = []
    for key, files in images.items():
        own_masks = masks.get(key, [])
        if len(files) == 1 and len(own_masks) <= 1:
            pairs.append((files[0], own_masks[0] if own_masks else None))
            continue
        for same in (files, own_masks):
            findings.refuse_same_names(same)
        names = " and ".join(mask.name for mask in own_masks)
        findings.refuse(files[0], f"expected one mask, got {names}. Keep only one of them.")

    accepted: list[CheckedImage] = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        checks = pool.map(lambda pair: check_pair(pair[0], pair[1], classes), pairs)
        for done, ((image, _), found) in enumerate(zip(pairs, checks, strict=True), start=1):
            if isinstance(found, CheckedImage):
                accepted.append(found)
            else:
                for path, reason in found.items():
                    findings.refuse(path, reason, slide=path if path == image and _is_large_tiff(path) else None)
            if progress is not None:
                progress(done, len(pairs))

    first: dict[str, CheckedImage] = {}
    for checked in sorted(accepted, key=lambda checked: (checked.mask is None, checked.name)):
        if (same_content := first.setdefault(checked.sha256, checked)) is not checked:
            kept = same_content.image.name
            findings.refuse(checked.image, f"expected each image once, got the same content as {kept}. Remove one.")
    findings.refuse_masks_alone(masks, images)
    kept_names = sorted(first.values(), key=lambda checked: checked.name)
    refused = tuple(refusal for _, refusal in sorted(findings.refused.items()))
    return LabCheck(accepted=tuple(kept_names), refused=refused, skipped=tuple(sorted(findings.skipped)))


def count_slides(refused: Iterable[RejectedFile]) -> int:
    """Count the whole slides among refused files; one of several files counts once."""
    return len({refusal.slide for refusal in refused if refusal.slide is not None})


class _Findings:
    """What has been refused and skipped so far."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.refused: dict[str, RejectedFile] = {}
        self.skipped: list[str] = []

    def refuse(self, path: Path, reason: str, slide: Path | None = None) -> None:
        """Refuse a file, which may be a slide or a part of one; the first reason stands."""
        file = _relative(path, self.source)
        whole = None if slide is None else _relative(slide, self.source)
        self.refused.setdefault(file, RejectedFile(file, reason.removeprefix(f"{path}: "), whole))

    def list_files(self, folder: str) -> dict[str, list[Path]]:
        """Group the usable files of a folder by `image_key`; the others are skipped or refused."""
        files: dict[str, list[Path]] = defaultdict(list)
        root = self.source / folder
        found = sorted(root.rglob("*")) if root.is_dir() else []
        slides = [path for path in found if folder == "images" and path.suffix.lower() in slide_suffixes()]
        parts = {part: slide for slide in slides for part in (slide, *slide_parts(slide))}
        for path in found:
            if any(part.startswith((".", "~$")) for part in path.relative_to(root).parts):
                self.skipped.extend([] if path.is_dir() else [_relative(path, self.source)])
            elif path.name.lower() in _SYSTEM_FILES:
                self.skipped.append(_relative(path, self.source))
            elif path.is_dir():
                continue
            elif slide := parts.get(path):
                self.refuse(path, _slide_reason(path, slide), slide)
            elif path.parent != root:
                self.refuse(
                    path,
                    f"expected files directly in {folder}/, got one in a folder of its own. Move it up; its patient or "
                    "slide is named in images.csv.",
                )
            elif not path.name.isprintable() or not _is_unicode(path.name):
                self.refuse(path, "expected a file name of printable Unicode characters, got others. Rename it.")
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                self.refuse(
                    path,
                    f"expected {', '.join(IMAGE_SUFFIXES)}, got {path.suffix or 'no suffix'}. Export it, or regions of "
                    "it, as PNG or TIFF.",
                )
            else:
                files[image_key(image_name(path))].append(path)
        return files

    def refuse_same_names(self, files: list[Path]) -> None:
        """Refuse files that would take each other's place; one alone is left."""
        for path in files if len(files) > 1 else ():
            others = ", ".join(other.name for other in files if other is not path)
            self.refuse(
                path,
                f"expected a name of its own, got the same as {others} (suffix and case do not count). "
                "Rename it, or keep only one of them.",
            )

    def refuse_masks_alone(self, masks: dict[str, list[Path]], images: dict[str, list[Path]]) -> None:
        """Refuse masks whose image is not there, or is refused."""
        for key, files in masks.items():
            for path in files:
                if key not in images:
                    self.refuse(
                        path, "expected an image of the same name in images/, found none. Send the image, or rename."
                    )
                elif image := self.refused.get(_relative(images[key][0], self.source)):
                    self.refuse(path, f"its image {images[key][0].name} is refused: {image.reason}")


def _slide_reason(path: Path, slide: Path) -> str:
    if path != slide:
        return f"expected an image, got a part of the whole slide {slide.name}, which is refused too: see its reason."
    return (
        f"expected {', '.join(IMAGE_SUFFIXES)}, got a whole slide ({path.suffix}). Export regions of it as PNG "
        "or TIFF into images/, with their slide (group) and pixel size (mpp) in images.csv; the slide itself is for "
        "microseg segment."
    )


def _is_large_tiff(path: Path) -> bool:
    """Whether a refused file is a TIFF of more pixels than are read as an image: a slide, though named as an image."""
    from microseg.slides.readers import image_pixels

    return path.is_file() and is_tiff(path) and (image_pixels(path) or 0) > images.MAX_PIXELS


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix().encode(errors="replace").decode()


def _is_unicode(name: str) -> bool:
    return name == name.encode(errors="replace").decode()


MIN_SIDE = 16  # pixels; nothing can be learned from a smaller image

_PLAIN_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM"}


def check_pair(image: Path, mask: Path | None, classes: Sequence[str]) -> CheckedImage | dict[Path, str]:
    """Check an image and its mask.

    Args:
        image: A file.
        mask: The file of its mask; None when unlabelled.
        classes: Names of the classes in the order of their mask values, background first.

    Returns:
        What is known of the image, or the reasons by path when it or its mask cannot be used.
    """
    try:
        pixels = read_image(image)  # (H, W, 3)
    except ImageReadError as error:
        return {image: str(error)}
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return {image: f"expected at least {MIN_SIDE} pixels a side, got {width} x {height}. Send a larger region."}
    if mask is not None:
        try:
            fault = _mask_fault(read_mask(mask), (height, width), classes)
        except ImageReadError as error:
            fault = str(error).removeprefix(f"{mask}: ")
        if fault is not None:
            return {mask: fault, image: f"its mask {mask.name} is refused: {fault}"}
    return CheckedImage(
        name=image_name(image),
        image=image,
        mask=mask,
        width=width,
        height=height,
        mpp=image_mpp(image),
        sha256=image_digest(pixels),
        plain=_is_plain_png(image),
    )


def _mask_fault(labels: npt.NDArray[np.uint8], size: tuple[int, int], classes: Sequence[str]) -> str | None:
    """Say what is wrong with a mask (H, W) of an image of ``size`` (H, W), if anything."""
    if labels.shape != size:
        return (
            f"expected the image's size {size[1]} x {size[0]}, got {labels.shape[1]} x {labels.shape[0]}. "
            "Export the mask at the image's size."
        )
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    known = ", ".join(f"{index} = {name}" for index, name in enumerate(classes))
    if IGNORE in found and not any(0 < value < IGNORE for value in found):
        return (
            f"expected class indices ({known}), got only {' and '.join(map(str, found))}. {IGNORE} means 'ignore', so "
            f"this mask would teach nothing; write 1 where it is {classes[1]}."
        )
    if unknown := [value for value in found if value >= len(classes) and value != IGNORE]:
        return (
            f"expected class indices ({known}; {IGNORE} = ignore), got {', '.join(map(str, unknown[:8]))}. "
            "Write class indices, or name every class in lab.yaml."
        )
    return None


def _is_plain_png(path: Path) -> bool:
    """Tell whether a file that `read_image` accepts is an 8-bit RGB PNG of nothing but pixels."""
    chunks: set[bytes] = set()
    with path.open("rb") as file:
        header = file.read(26)
        if header[:8] != b"\x89PNG\r\n\x1a\n" or header[24:26] != b"\x08\x02":  # bit depth 8, color type RGB
            return False
        file.seek(8)
        while start := file.read(8):
            chunks.add(start[4:])
            file.seek(int.from_bytes(start[:4]) + 4, 1)  # the content and its checksum
    return chunks <= _PLAIN_PNG_CHUNKS
