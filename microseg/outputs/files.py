"""Output files in a folder: their names, and how all files of an image appear or disappear together."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from microseg.config.params import InferenceSettings
from microseg.errors import DataError, ImageReadError
from microseg.escaping import printable
from microseg.files import disk_full_error
from microseg.outputs.names import name_digest, usable_name
from microseg.outputs.record import Record, read_record
from microseg.outputs.writers import output_suffixes
from microseg.slides.identity import source_sha256

__all__ = ["OUTPUTS", "output_names", "publish", "remove_partial", "staged"]

OUTPUTS = InferenceSettings().outputs
"""Outputs that are written by default. The fifth built-in one is ``probabilities`` (32-bit, large)."""

_PARTIAL = ".partial"  # suffix of the temporary folders
_RESERVED = ("batch",)  # batch.json describes the batch
_NAMINGS: tuple[Callable[[Path], str], ...] = (
    lambda path: usable_name(path.stem),
    lambda path: usable_name(path.name),
    lambda path: usable_name(f"{path.absolute().parent.name}_{path.name}"),
    lambda path: usable_name(path.name, f"-{name_digest(str(path.absolute()))}"),
)


def output_names(sources: Sequence[Path], folder: Path) -> list[str]:
    """Choose the stem of the output files' names of each image.

    It is the stem of the image, ``a.png`` → ``a``. Where two images would share it, or other files in the folder have
    it, the suffix is added, ``a.png``; where that is shared too, the image's folder, ``slides_a.png``, or eight digits
    of the hash of its path. An image that has outputs keeps their name. Characters that are no text are
    escaped, and a long name is shortened; see `usable_name`.

    Args:
        sources: Paths of the images, all different.
        folder: Folder of the outputs.

    Returns:
        A name for each image, all different even if case is ignored.
    """
    existing = [
        next((it for it in _NAMINGS if _owner(folder, it(s)) in (_recorded(s), _recorded(s.resolve()))), None)
        for s in sources
    ]
    chosen = [0] * len(sources)
    while True:
        names = [(kept or _NAMINGS[i])(source) for kept, i, source in zip(existing, chosen, sources, strict=True)]
        counts = Counter(name.casefold() for name in names)
        clashes = [
            number
            for number, (name, source) in enumerate(zip(names, sources, strict=True))
            if existing[number] is None
            and chosen[number] < len(_NAMINGS) - 1
            and (counts[name.casefold()] > 1 or _taken(folder, name, source))
        ]
        if not clashes:
            return names
        for number in clashes:
            chosen[number] += 1


@contextmanager
def staged(folder: Path, name: str) -> Iterator[Path]:
    """Create a temporary folder for the outputs of an image, and remove it at the end.

    Args:
        folder: Folder of the outputs.
        name: Stem of their names.

    Yields:
        The temporary folder; `publish` moves its files out.

    Raises:
        NoSpaceError: The disk is full.
    """
    kept = "The outputs of this image are not written; those of the images before are complete."
    with disk_full_error(folder / name, kept=kept):
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}.", suffix=_PARTIAL))
        try:
            with disk_full_error(folder / name, part=staging, kept=kept):
                yield staging
        finally:
            _discard(staging)


def publish(staging: Path, folder: Path, record: Record) -> None:
    """Replace earlier outputs by finished ones, the record last: without it the others do not count.

    Args:
        staging: From `staged`, with the files that the record names.
        folder: Folder of the outputs.
        record: Record of the segmentation.
    """
    record_file = f"{record.name}.json"
    (staging / record_file).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _remove_outputs(folder, record.name)
    for file in (*record.outputs.values(), record_file):
        (staging / file).replace(folder / file)


def _remove_outputs(folder: Path, name: str) -> None:
    """Remove an earlier segmentation: its record first, so that it does not count any more."""
    path = folder / f"{name}.json"
    with suppress(DataError):
        record = read_record(path)
        path.unlink()
        for file in record.outputs.values():
            (folder / Path(file).name).unlink(missing_ok=True)


def remove_partial(folder: Path, sources: Sequence[Path]) -> None:
    """Remove what a killed process left of these images: its temporary folder, and files already moved out of it."""
    names = {naming(source) for source in sources for naming in _NAMINGS}
    for staging in folder.glob(f".*{_PARTIAL}"):
        if _name_of(staging) in names:
            _discard(staging)


def _discard(staging: Path) -> None:
    """Remove a temporary folder; if `publish` was interrupted, also the files already moved out of it."""
    with suppress(DataError):  # `publish` moves the record last
        for file in read_record(staging / f"{_name_of(staging)}.json").outputs.values():
            if not (staging / file).exists():
                (staging.parent / Path(file).name).unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)


def _name_of(staging: Path) -> str:
    return staging.name[1 : -len(_PARTIAL)].rpartition(".")[0]  # .<name>.<random letters>.partial


def _owner(folder: Path, name: str) -> str | None:
    """Path of the image whose outputs have a name, as it is recorded."""
    path = folder / f"{name}.json"
    if path.is_file():
        with suppress(DataError):
            return read_record(path).source
    return None


def _recorded(source: Path) -> str:
    return printable(str(source))


def _taken(folder: Path, name: str, source: Path) -> bool:
    """Whether a name is used by other files, or by another image; a copy of an image is not another image."""
    if name.casefold() in _RESERVED:
        return True
    if _owner(folder, name) is None:
        return any((folder / (name + suffix)).exists() for suffix in (".json", *output_suffixes()))
    with suppress(ImageReadError):  # of a slide at an address
        return not source.is_file() or read_record(folder / f"{name}.json").source_sha256 != source_sha256(source)
    return True
