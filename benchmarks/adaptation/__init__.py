"""Benchmark of adaptation methods on pairs of labs: ``python -m benchmarks.adaptation --help``."""
