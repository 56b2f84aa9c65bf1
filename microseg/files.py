"""Files that appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "link_or_copy"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to a temporary sibling, which takes the place of ``path`` when the block ends without an error.

    Args:
        path: The file to write; its folder exists.

    Yields:
        The sibling to write to.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)


def link_or_copy(path: Path, target: Path) -> None:
    """Share a file that never changes, where the file system can; else copy it.

    Args:
        path: The file.
        target: Its other name; there is none such yet.
    """
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
