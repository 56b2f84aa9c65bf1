"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["good", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        level: ``good``, ``warning`` (something is missing that some need) or ``fault``.
        sentence: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    subject: str
    level: Level
    sentence: str
    remedy: str = ""
