"""The files of segmentations in a folder: what there is, how it is named, how it goes."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from pathlib import Path

from microseg.errors import DataError, SettingsError
from microseg.outputs.record import Record, read_record

__all__ = [
    "OUTPUTS",
    "PARTIAL",
    "SUFFIXES",
    "check_outputs",
    "discard_partial",
    "file_sha256",
    "output_names",
    "publish",
    "remove_outputs",
    "remove_partial",
    "staged",
]

OUTPUTS = ("labels", "outlines", "overlay", "objects")
"""What is written unless told otherwise; ``probabilities`` (32-bit, large) is the fifth that can be."""

SUFFIXES = {
    "labels": ".labels.tif",
    "outlines": ".geojson",
    "overlay": ".overlay.jpg",
    "objects": ".objects.csv",
    "probabilities": ".probabilities.tif",
}
PARTIAL = ".partial"  # ending of the folders in which outputs are made
_RESERVED = ("batch",)  # batch.json is the batch's own
_WAYS: tuple[Callable[[Path], str], ...] = (
    lambda path: path.stem,
    lambda path: path.name,
    lambda path: f"{path.resolve().parent.name}_{path.name}",
    lambda path: f"{path.name}-{sha256(str(path.resolve()).encode()).hexdigest()[:8]}",
)


def output_names(sources: Sequence[Path], folder: Path) -> list[str]:
    """How the names of each image's outputs begin.

    As the image's, without its suffix: ``a.png`` → ``a``. Where two images would share that, or other files are in the
    folder under it: with the suffix, ``a.png``; where that is shared too, with the image's folder,
    ``slides_a.png``, or with eight digits of the hash of its path. An image that has outputs keeps their name.

    Args:
        sources: paths of the images, all different.
        folder: where the outputs go.

    Returns:
        A name for each image, all different even where upper and lower case are the same.
    """
    own = [next((way for way in _WAYS if _owner(folder, way(s)) in (s, s.resolve())), None) for s in sources]
    chosen = [0] * len(sources)
    while True:
        names = [(kept or _WAYS[i])(source) for kept, i, source in zip(own, chosen, sources, strict=True)]
        counts = Counter(name.casefold() for name in names)
        clashes = [
            number
            for number, (name, source) in enumerate(zip(names, sources, strict=True))
            if own[number] is None
            and chosen[number] < len(_WAYS) - 1
            and (counts[name.casefold()] > 1 or _taken(folder, name, source))
        ]
        if not clashes:
            return names
        for number in clashes:
            chosen[number] += 1


def check_outputs(outputs: Collection[str]) -> None:
    """Refuse outputs that nobody can write.

    Raises:
        SettingsError: when there is another one than in ``SUFFIXES``.
    """
    unknown = [outputs] if isinstance(outputs, str) else sorted(set(outputs) - set(SUFFIXES))
    if unknown:
        raise SettingsError(f"Expected a list of outputs out of {', '.join(SUFFIXES)}, got {unknown}: choose of those.")


@contextmanager
def staged(folder: Path, name: str) -> Iterator[Path]:
    """A folder in which the outputs of an image are made; it is gone afterwards, whatever happens.

    Args:
        folder: where the outputs go.
        name: how their names begin.

    Yields:
        The folder; `publish` moves its files out.
    """
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}.", suffix=PARTIAL))
    try:
        yield staging
    finally:
        discard_partial(staging)


def publish(staging: Path, folder: Path, record: Record) -> dict[str, Path]:
    """Put finished outputs in place of earlier ones, and the record last: without it nothing counts.

    Args:
        staging: from `staged`, with the files that the record names.
        folder: where the outputs go.
        record: of the segmentation.

    Returns:
        The files by output, and the record under ``record``.
    """
    own = f"{record.name}.json"
    (staging / own).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    remove_outputs(folder, record.name)
    for file in (*record.outputs.values(), own):
        (staging / file).replace(folder / file)
    return {output: folder / file for output, file in record.outputs.items()} | {"record": folder / own}


def remove_outputs(folder: Path, name: str) -> None:
    """Remove an earlier segmentation: its record first, so that it does not count while its files go."""
    path = folder / f"{name}.json"
    with suppress(DataError):
        record = read_record(path)
        path.unlink()
        for file in record.outputs.values():
            (folder / Path(file).name).unlink(missing_ok=True)


def remove_partial(folder: Path, sources: Sequence[Path]) -> None:
    """Remove what a killed process left half made of these images: its folder, and files already moved out of it."""
    names = {way(source) for source in sources for way in _WAYS}
    for left in folder.glob(f".*{PARTIAL}"):
        if _name_of(left) in names:
            discard_partial(left)


def discard_partial(staging: Path) -> None:
    """Remove the folder in which a segmentation was made; if it was not finished, also its files that had left it."""
    with suppress(DataError):  # a finished one has taken its record along
        for file in read_record(staging / f"{_name_of(staging)}.json").outputs.values():
            if not (staging / file).exists():
                (staging.parent / Path(file).name).unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _name_of(staging: Path) -> str:
    return staging.name[1 : -len(PARTIAL)].rpartition(".")[0]  # .<name>.<random letters>.partial


def _owner(folder: Path, name: str) -> Path | None:
    """The image whose outputs are there under a name."""
    path = folder / f"{name}.json"
    if path.is_file():
        with suppress(DataError):
            return Path(read_record(path).source)
    return None


def _taken(folder: Path, name: str, source: Path) -> bool:
    """Whether files of others, or of another image, are there under a name; a copy of an image is not another one."""
    if name.casefold() in _RESERVED:
        return True
    if _owner(folder, name) is None:
        return any((folder / (name + suffix)).exists() for suffix in (".json", *SUFFIXES.values()))
    return not source.is_file() or read_record(folder / f"{name}.json").source_sha256 != file_sha256(source)
