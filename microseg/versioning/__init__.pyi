from .provenance import DatasetVersion, code_commit
from .store import DatasetStore, HistoryEntry

__all__ = ["DatasetStore", "DatasetVersion", "HistoryEntry", "code_commit"]
