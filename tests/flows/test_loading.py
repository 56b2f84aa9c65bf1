"""One process loads each network once and hashes each file of a dataset once, whatever its flows do."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.ingest import ingest
from flows.onboard import onboard
from flows.train import train
from flows.workspace import open_workspace
from microseg.datasets.versions import file_hashes
from microseg.datasets.versions.store import DatasetStore
from microseg.models import files
from tests.flows.conftest import LENIENT


def test_one_onboarding_loads_each_network_once_and_verifies_each_dataset_once(
    fresh: Path, incoming_labs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(incoming_labs[0])
    assert train(("lab_a",), changes=LENIENT).version == 1
    open_workspace.cache_clear()  # as in a new process
    file_hashes._hashed.clear()

    networks, checkouts, hashed = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
    load_tensors, checkout, file_digest = files.load_tensors, DatasetStore.checkout, file_hashes.file_digest

    def count_network(data: bytes) -> Any:
        networks[str(hash(data))] += 1
        return load_tensors(data)

    def count_checkout(self: DatasetStore, lab: str, digest: str) -> Path:
        checkouts[lab, digest] += 1
        return checkout(self, lab, digest)

    def count_hash(file: Any, algorithm: str) -> Any:
        hashed[file.name] += 1
        return file_digest(file, algorithm)

    monkeypatch.setattr(files, "load_tensors", count_network)
    monkeypatch.setattr(DatasetStore, "checkout", count_checkout)
    monkeypatch.setattr(file_hashes, "file_digest", count_hash)
    state = onboard(incoming_labs[1], changes=(*LENIENT, "promotion.approval=gate"), return_state=True)
    assert "Version 2 is in production" in str(state.message)
    assert sorted(networks.values()) == [1, 1]
    assert {lab: number for (lab, _), number in checkouts.items()} == {"lab_a": 1, "lab_b": 1}
    assert set(hashed.values()) <= {1}
