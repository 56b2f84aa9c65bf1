"""When images have drifted; apart from the figures, so that settings load without NumPy."""

from dataclasses import dataclass

__all__ = ["DriftPolicy"]


@dataclass(frozen=True)
class DriftPolicy:
    """When images have drifted.

    Attributes:
        max_share: of images that may be unlike anything known, 0..1. One image alone never counts.
        max_median: of the images' drifts. 0.8 is about where 95 of 100 images of a known lab lie below: a lab that is
            near a known one shifts all its images, and few of them far enough to be unlike by themselves.
    """

    max_share: float = 0.15
    max_median: float = 0.8
