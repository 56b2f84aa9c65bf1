"""Which files are slides, and which are parts of one: told by names, without opening any."""

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SLIDE_SUFFIXES", "slide_parts"]

SLIDE_SUFFIXES: tuple[str, ...] = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
"""Endings of slide files besides those of images; a TIFF is told by its content."""

_LONGEST_LIST = 2**20  # bytes of a VMS or VMU that are looked at; they list file names
_LISTED = re.compile(r"^\s*[^=\n]+=\s*(\S[^\n]*?)\s*$", re.MULTILINE)


def slide_parts(slide: Path) -> Iterator[Path]:
    """The further files that a slide consists of.

    Args:
        slide: the file that OpenSlide wants.

    Yields:
        The files in the folder of the same name, beside an MRXS; those that a VMS or a VMU lists, images among them.
    """
    kind = slide.suffix.lower()
    if kind == ".mrxs":
        yield from (path for path in sorted(slide.with_suffix("").rglob("*")) if path.is_file())
    elif kind in (".vms", ".vmu") and slide.is_file():
        with slide.open("rb") as file:
            text = file.read(_LONGEST_LIST).decode(errors="replace")
        for name in _LISTED.findall(text):
            part = slide.parent / Path(name.replace("\\", "/")).name
            if part != slide and part.name.isprintable() and part.is_file():
                yield part
