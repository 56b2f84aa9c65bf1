"""Which files are slides, and which are parts of one: told without decoding any."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["SLIDE_SUFFIXES", "slide_parts"]

SLIDE_SUFFIXES: tuple[str, ...] = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
"""Endings of slide files besides those of images; a TIFF is told by its content."""

_LONGEST_LIST = 2**18  # bytes of a VMS or VMU that are looked at; they list file names


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
        text = ""
        with suppress(OSError), slide.open("rb") as file:  # it is refused, whether it can be read or not
            text = file.read(_LONGEST_LIST).decode(errors="replace")
        listed = {line.partition("=")[2].strip().replace("\\", "/").rpartition("/")[2] for line in text.splitlines()}
        beside = (path for path in sorted(slide.parent.iterdir()) if path.name in listed and path != slide)
        yield from (path for path in beside if path.is_file())
