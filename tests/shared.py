"""What is made once for all processes of a test run, or left out, because it takes seconds."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from microseg.registry.version import CARD_FILE

if TYPE_CHECKING:
    from mlflow.models import Model

__all__ = ["made_once", "write_without_graph"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Folder that the first process makes and the others use, which no test changes.

    Args:
        factory: Temporary folders of this process.
        name: Name of the folder.
        make: Fills the folder.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    folder, complete = root / name, root / f"{name} is complete"
    with FileLock(root / f"{name}.lock"):
        if not complete.exists():
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


def write_without_graph(
    folder: Path, model: "Model", network: object, source: Path, example: object, card: str
) -> None:
    """Write an MLflow model without the exported graph."""
    files = folder / "extra_files"
    shutil.copytree(source, files)
    (files / CARD_FILE).write_text(card, encoding="utf-8")
    model.save(str(folder / "MLmodel"))
