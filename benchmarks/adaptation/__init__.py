"""How much of a cross-lab gap each method of adaptation recovers: ``python -m benchmarks.adaptation --help``."""
