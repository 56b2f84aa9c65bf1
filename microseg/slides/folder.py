"""The images of a folder: what is read, and what is left out and why."""

import os
from dataclasses import dataclass
from pathlib import Path

from microseg.errors import ResourceLimitError
from microseg.slides.limited import can_be_slide
from microseg.slides.parts import slide_owners
from microseg.slides.readers import readable_suffixes, slide_suffixes

__all__ = ["ImageFolder", "is_system_file", "list_images"]

_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db")
_TABLES = (".csv", ".yaml", ".yml")  # beside images they state facts about them


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder.

    Attributes:
        images: Paths, by name; links that lead nowhere are among them, and fail when they are read.
        left_out: Files and folders that are no images, by name, and why.
    """

    images: tuple[Path, ...]
    left_out: dict[str, str]


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden, or of the operating system or an editor, by its name."""
    return name.startswith((".", "~$")) or name.lower() in _SYSTEM_FILES


def list_images(folder: Path) -> ImageFolder:
    """List the images and slides of a folder.

    Files with the ending of an image or a slide are images, and so are those of other endings that a slide reader
    recognizes by their content. Of a slide of several files the one that opens it is the image. Hidden files and those
    of the operating system do not count.

    Args:
        folder: An existing folder; folders in it are not read.
    """
    found = sorted(path for path in folder.iterdir() if not is_system_file(path.name))
    suffixes, slide_files = readable_suffixes(), slide_suffixes()
    owners = slide_owners(found, slide_files)
    parts = {part: slide for part, slide in owners.items() if part != slide}
    folders_of_slides = {part.parent for part in parts} - {folder, *owners.values()}
    images, left_out = list[Path](), dict[str, str]()
    for path in found:
        if path in parts or path in folders_of_slides:
            if path in parts:
                left_out[path.name] = f"a part of {parts[path].name}"
        elif path.is_dir() and path not in owners:
            files = _count_files(path)
            left_out[path.name] = f"a folder with {files} files" if files else "an empty folder"
        elif path in owners or path.suffix.lower() in suffixes or (unknown := _why_no_slide(path)) is None:
            images.append(path)
        elif path.suffix.lower() not in _TABLES:
            left_out[path.name] = unknown
    return ImageFolder(tuple(images), left_out)


def _why_no_slide(path: Path) -> str | None:
    """Why a file of another ending is no image; None if a slide reader recognizes its content."""
    unknown = f"no known kind of image ({path.suffix or 'no ending'})"
    try:
        return None if path.is_file() and can_be_slide(path) else unknown
    except ResourceLimitError as error:
        return f"{unknown}: {error}"


def _count_files(folder: Path) -> int:
    return sum(not is_system_file(name) for _, _, names in os.walk(folder) for name in names)
