"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        level: ``ok``, ``warning`` (something is missing that some need) or ``error``.
        sentence: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    subject: str
    level: Level
    sentence: str
    remedy: str = ""
