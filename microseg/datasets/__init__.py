"""Datasets of labs: metadata, checks, ingest, manifest, splits, sampling, versions."""
