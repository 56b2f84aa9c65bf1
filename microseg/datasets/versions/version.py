"""What a result was made from: the version of a dataset, the commit of the code."""

import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microseg.errors import VersioningError

__all__ = ["DatasetVersion", "code_commit"]

_DIGEST = re.compile(r"[0-9a-f]{32}\.dir", re.ASCII)


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a lab's dataset.

    Attributes:
        lab: The lab's name.
        digest: DVC's hash of the folder, 32 hexadecimal digits and ``.dir``.
        files: Number of files.
        bytes: Their size together.
    """

    lab: str
    digest: str
    files: int
    bytes: int

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise VersioningError(
                f"lab {self.lab}: expected a dataset's digest, 32 hexadecimal digits and '.dir', got {self.digest!r}. "
                "Take it from the lab's history."
            )

    def to_dict(self) -> dict[str, str | int]:
        """Give the same as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetVersion":
        """Make a version from what `to_dict` gave.

        Args:
            values: The dictionary.

        Returns:
            The version.

        Raises:
            VersioningError: A value is missing, superfluous or not of its kind.
        """
        try:
            return cls(
                lab=str(values["lab"]),
                digest=str(values["digest"]),
                files=int(values["files"]),
                bytes=int(values["bytes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise VersioningError(
                f"expected lab, digest, files and bytes of a dataset's version, got {values}."
            ) from error


def code_commit(root: Path) -> str:
    """Find the commit of the code in a folder.

    Args:
        root: Any folder of a git checkout.

    Returns:
        The commit, followed by ``-dirty`` when a tracked file differs from it; ``unknown`` where there is no git, no
        checkout or no commit.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return "unknown"
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit if changes == "" else f"{commit}-dirty"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
