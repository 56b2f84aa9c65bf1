"""Writes the tables of the benchmark pages from the JSON of the results."""
