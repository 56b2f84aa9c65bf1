"""Versions of datasets, and where results come from."""

from microseg.versioning.provenance import DatasetVersion, code_commit
from microseg.versioning.store import DatasetStore, HistoryEntry

__all__ = ["DatasetStore", "DatasetVersion", "HistoryEntry", "code_commit"]
