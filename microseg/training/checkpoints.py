"""Checkpoints: their names, and files of tensors and plain values from which nothing is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from microseg.errors import TrainingError
from microseg.files import atomic_write

__all__ = ["checkpoint_file", "read_checkpoint", "remove_checkpoints", "write_checkpoint"]

_NAME_DIGITS = 16


def checkpoint_file(folder: Path, fingerprint: str) -> Path:
    """File of the checkpoint of a training, beside the folder of its result.

    Args:
        folder: Folder that the network will be written to.
        fingerprint: Digest of data and settings, hexadecimal.
    """
    return folder.with_name(f"{folder.name}.{fingerprint[:_NAME_DIGITS]}.checkpoint")


def remove_checkpoints(folder: Path, *, keep: Path | None = None) -> list[Path]:
    """Remove the checkpoints of a folder, of all fingerprints.

    Args:
        folder: Folder that the network is written to.
        keep: The one to keep.

    Returns:
        Those removed.
    """
    name = re.compile(rf"{re.escape(folder.name)}(\.[0-9a-f]{{{_NAME_DIGITS}}})?\.checkpoint", re.ASCII)
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    found = [path for path in beside if name.fullmatch(path.name) and path != keep]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(state, file)


def read_checkpoint(path: Path, *, fingerprint: str) -> dict[str, Any]:
    """Read a state written by `write_checkpoint`; nothing in the file is executed.

    Raises:
        TrainingError: The file is damaged, or of a run with another fingerprint.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        written = state["fingerprint"]
    except Exception as error:  # PyTorch's message recommends an unsafe way to load the file
        raise TrainingError(f"Expected a checkpoint in {path}, it is damaged or another file.") from error
    if written != fingerprint:
        raise TrainingError(f"Checkpoint {path} was written by a run with other settings or data.")
    return dict(state)
