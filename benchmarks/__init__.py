"""Benchmarks of quality and speed; each module is a command that prints its tables."""
