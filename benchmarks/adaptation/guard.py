"""Prevents a process that trains from reading held-out test sets."""

import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["forbid"]


def forbid(folder: Path, name: str = "test") -> None:
    """Refuse, for the rest of this process, to open or list anything in subfolders of a name.

    It uses Python's audit events, which every ``open`` raises in any library, and cannot be undone.

    Args:
        folder: Folder that contains the subfolders, at any depth.
        name: Name of the subfolders.
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
            raise PermissionError(f"{where} is in a held-out test set, which training must not read")

    sys.addaudithook(refuse)
