"""Metrics of the benchmark of objects, by the names of their columns."""

__all__ = ["METRICS"]

METRICS = {
    "f1": "f1_at_50",
    "mean_f1": "mean_f1",
    "pq": "panoptic_quality",
    "aji": "aji",
    "count_error": "count_error",
    "dice": "dice",
}
