"""How well label-free scores rank networks: ``python -m benchmarks.evidence --help``."""
