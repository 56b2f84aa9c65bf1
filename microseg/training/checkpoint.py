"""Checkpoints: all that a run needs to go on exactly, in one file that executes nothing when read."""

import os
from pathlib import Path
from typing import Any

import torch

from microseg.errors import TrainingError

__all__ = ["read_checkpoint", "write_checkpoint"]

_UNUSABLE = "Expected a checkpoint in {}, it is damaged or something else: delete it to start again."


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts, whole or not at all.

    Args:
        path: file to write or replace.
        state: what to keep.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)  # noqa: PTH105 (the standard's atomic replacement)


def read_checkpoint(path: Path, *, fingerprint: str) -> dict[str, Any]:
    """Read a state back.

    Args:
        path: the file.
        fingerprint: of the run that wants to go on.

    Raises:
        TrainingError: when the file is damaged, or belongs to a run with other settings or data.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's message advises to execute the file
        raise TrainingError(_UNUSABLE.format(path)) from error
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise TrainingError(_UNUSABLE.format(path))
    if state["fingerprint"] != fingerprint:
        raise TrainingError(
            f"Checkpoint {path} was written by a run with other settings or data: "
            "delete it, or choose another folder, to start anew."
        )
    return state
