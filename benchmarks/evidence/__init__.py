"""How well label-free scores tell good networks from bad: ``python -m benchmarks.evidence --help``."""
