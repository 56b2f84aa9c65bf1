"""The small frozen records that flows hand to one another, and to DVC as files."""

from dataclasses import dataclass

from microseg.registry.gate import Decision

__all__ = [
    "AdaptRecord",
    "EvaluateRecord",
    "TrainRecord",
]


@dataclass(frozen=True)
class TrainRecord:
    """The first segmenter.

    Attributes:
        version: in the registry.
        run_id: of its training.
        labs: dataset versions by lab.
        dice: on each lab's held-out images.
        decision: of the gate; None if a version is in production already.
    """

    version: int
    run_id: str
    labs: dict[str, str]
    dice: dict[str, float | None]
    decision: Decision | None


@dataclass(frozen=True)
class AdaptRecord:
    """A candidate.

    Attributes:
        version: in the registry.
        run_id: of its adaptation.
        base: Version that it was adapted from.
        source: Dataset versions of the other labs, by lab.
        target: Dataset version of the target lab, by lab.
        seconds: Duration of the adaptation.
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
        decision: of the gate, with the numbers of both versions.
        lab: the target lab; None if only source labs were evaluated.
        comparison: JSON file of all measurements.
        panels: images of both segmentations side by side.
    """

    decision: Decision
    lab: str | None
    comparison: str
    panels: list[str]
