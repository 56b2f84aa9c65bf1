"""How a figure that was measured several times is written. Nothing else is imported with it."""

import statistics
from collections.abc import Sequence

__all__ = ["spread"]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and the least and the most: ``1.03 (0.98 to 1.10)``."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"
