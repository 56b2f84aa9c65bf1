"""History of the versions of labs' datasets: one file on this machine, and one note for each version in the remote.

Several machines share the history through the remote. Each version has a number, one more than that of the version
before it, so that no clock decides the order. Where two machines commit at the same moment, both versions are kept, and
all machines order them alike.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from microseg.datasets.lab import check_lab_name
from microseg.errors import VersioningError
from microseg.files import write_text_file
from microseg.parsing import parse_json

__all__ = ["DIGEST", "DatasetVersion", "LocalHistory", "merge", "note_name", "read_note"]

DIGEST = re.compile(r"[0-9a-f]{32}\.dir", re.ASCII)
"""DVC's hash of a folder."""

_NOTE = re.compile(r"\d{6}-[0-9a-f]{32}\.json", re.ASCII)


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a lab's dataset.

    Attributes:
        lab: Name of the lab.
        digest: DVC's hash of the folder, 32 hexadecimal digits and ``.dir``.
        files: Number of files.
        bytes: Size of all files together.
        committed_at: Time of the commit, UTC, ISO 8601.
        number: Position in the history, from 1.
    """

    lab: str
    digest: str
    files: int
    bytes: int
    committed_at: str
    number: int = 0


def merge(*histories: Iterable[DatasetVersion]) -> tuple[DatasetVersion, ...]:
    """Merge the histories of a lab on several machines, the oldest version first.

    Args:
        histories: Histories with overlapping versions.
    """
    versions = {(version.number, version.digest): version for history in histories for version in history}
    return tuple(versions[key] for key in sorted(versions))


def note_name(version: DatasetVersion) -> str:
    """Name of the note of a version in the remote, relative to ``microseg/history/<lab>``."""
    return f"{version.number:06d}-{version.digest.removesuffix('.dir')}.json"


def read_note(lab: str, name: str, content: bytes) -> DatasetVersion | None:
    """Read a note; None where its name is not that of one.

    Raises:
        VersioningError: The note is damaged.
    """
    if not _NOTE.fullmatch(name):
        return None
    try:
        version = _parse(content)
        if version.lab != lab or note_name(version) != name:
            raise ValueError(f"that of {version.lab}, {note_name(version)}")
    except (ValueError, TypeError) as error:
        raise VersioningError(
            f"microseg/history/{lab}/{name} in the remote: expected the note of a version, got {error}. Restore it "
            "from a backup, or remove it where the version is in the history of another machine."
        ) from error
    return version


def _parse(text: str | bytes) -> DatasetVersion:
    """A version from JSON; what is wrong with it is a ValueError or a TypeError."""
    version = DatasetVersion(**parse_json(text))
    texts, numbers = (version.lab, version.digest, version.committed_at), (version.files, version.bytes, version.number)
    if not (all(type(it) is str for it in texts) and all(type(it) is int for it in numbers)):
        raise ValueError(f"values of other types: {version}")
    return version


class LocalHistory:
    """The histories that this machine knows.

    Args:
        folder: Folder of the files; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def labs(self) -> tuple[str, ...]:
        """Names of all labs that have a history."""
        return tuple(sorted(path.stem for path in self._folder.glob("*.jsonl")))

    def read(self, lab: str) -> tuple[DatasetVersion, ...]:
        """Versions of a lab, the oldest first.

        Raises:
            VersioningError: The file is damaged.
        """
        path = self._file(lab)
        if not path.is_file():
            return ()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            versions = [_parse(line) for line in lines]
        except (ValueError, TypeError) as error:
            raise VersioningError(f"{path}: expected one JSON object a line, got {error}. Correct the line.") from error
        # microseg 0.1 wrote no numbers
        return tuple(replace(it, number=it.number or position) for position, it in enumerate(versions, 1))

    def write(self, lab: str, versions: Iterable[DatasetVersion]) -> None:
        """Replace the history of a lab."""
        write_text_file(self._file(lab), "".join(json.dumps(asdict(version)) + "\n" for version in versions))

    def base(self, lab: str) -> str | None:
        """Digest of the version that the lab's dataset on this machine was made from; None if it has no version."""
        path = self._base_file(lab)
        if not path.is_file() and (history := self.read(lab)):
            self.set_base(lab, history[-1].digest)  # microseg 0.1 did not record it
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def set_base(self, lab: str, digest: str) -> None:
        """Record the version that the lab's dataset on this machine is now."""
        write_text_file(self._base_file(lab), f"{digest}\n")

    def _file(self, lab: str) -> Path:
        return self._folder / f"{check_lab_name(lab)}.jsonl"

    def _base_file(self, lab: str) -> Path:
        return self._folder / f"{check_lab_name(lab)}.base"
