"""Benchmark of separated objects."""
