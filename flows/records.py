"""The small frozen records that flows hand to one another, and to DVC as files."""

from dataclasses import dataclass
from typing import Any

__all__ = [
    "AdaptRecord",
    "EvaluateRecord",
    "IngestRecord",
    "PromoteRecord",
    "TrainRecord",
]


@dataclass(frozen=True)
class IngestRecord:
    """A lab's dataset after ingestion.

    Attributes:
        lab: its name.
        digest: the version of its dataset.
        images: in the dataset.
        labelled: of them, with a mask.
        refused: files put into quarantine this time.
        quarantine: where they are; None when there are none.
        slides: whole slides among them.
    """

    lab: str
    digest: str
    images: int
    labelled: int
    refused: int
    quarantine: str | None
    slides: int = 0

    @property
    def refusals(self) -> str:
        """What was refused and where the reasons are, in a sentence; empty when nothing was."""
        slides = f" (whole slides among them: {self.slides})" if self.slides else ""
        return (
            f"Files refused: {self.refused}{slides}; the reasons: {self.quarantine}/reasons.csv."
            if self.refused
            else ""
        )


@dataclass(frozen=True)
class TrainRecord:
    """The first segmenter.

    Attributes:
        version: in the registry.
        run_id: of its training.
        labs: dataset versions by lab.
        dice: on each lab's held-out images.
        production: whether it went into production.
        reasons: of the gate.
    """

    version: int
    run_id: str
    labs: dict[str, str]
    dice: dict[str, float | None]
    production: bool
    reasons: list[str]


@dataclass(frozen=True)
class AdaptRecord:
    """A candidate.

    Attributes:
        version: in the registry.
        run_id: of its adaptation.
        base: the version that it was adapted from.
        source: dataset versions of the labelled labs read back.
        target: dataset versions of the labs adapted to.
        seconds: of training.
    """

    version: int
    run_id: str
    base: int
    source: dict[str, str]
    target: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class EvaluateRecord:
    """A comparison of two versions.

    Attributes:
        candidate: version judged.
        production: version beside it; None when there was none.
        lab: the new lab; None when only labelled labs were looked at.
        comparison: file of all figures.
        figures: pictures of both on the same images.
        evidence: all figures.
    """

    candidate: int
    production: int | None
    lab: str | None
    comparison: str
    figures: list[str]
    evidence: dict[str, Any]


@dataclass(frozen=True)
class PromoteRecord:
    """The gate's decision.

    Attributes:
        version: judged.
        accepted: whether it went into production.
        production: the version in production afterwards; None when there is none.
        reasons: one sentence for each rule.
    """

    version: int
    accepted: bool
    production: int | None
    reasons: list[str]
