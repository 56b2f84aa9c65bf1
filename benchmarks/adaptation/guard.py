"""Keeps what is held back for the report out of reach of a process that trains."""

import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["forbid"]


def forbid(folder: Path, name: str = "test") -> None:
    """Refuse, for the rest of this process, to open or list anything in a subfolder of that name.

    It hangs on Python's audit events, which every ``open`` raises, whichever library calls it, and it cannot be taken
    back.

    Args:
        folder: under which the rule holds.
        name: of the subfolders.
    """
    root = folder.resolve()

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir") or not arguments:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        where = Path(os.fsdecode(path))
        where = where if where.is_absolute() else Path.cwd() / where
        resolved = Path(os.path.realpath(where))
        if resolved.is_relative_to(root) and name in resolved.relative_to(root).parts:
            raise PermissionError(f"{where} is held back for the report: nothing that trains may read it")

    sys.addaudithook(refuse)
