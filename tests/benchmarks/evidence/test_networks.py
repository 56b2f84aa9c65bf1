"""The networks of a grid, and the degraded ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.evidence.networks import candidates, grid_networks
from microseg.errors import SettingsError
from microseg.models.files import load_network, save_network
from microseg.training.adaptation.normalization import read_statistics

Make = Callable[..., Any]


@pytest.fixture
def keep(tiny_network: Make, tmp_path: Path) -> Callable[..., Path]:
    def build(grid: str, method: str, weights: int, *, seed: int = 0, finished: bool = True) -> Path:
        folder = tmp_path / grid / "work" / "glands" / f"seed-{seed}" / method
        save_network(folder, tiny_network(weights))
        if finished:
            (folder / "minutes.json").write_text("1.0")
        return folder

    return build


def test_equal_networks_are_listed_once_without_upper_bounds(keep: Callable[..., Path], tmp_path: Path) -> None:
    keep("one", "adabn", 1)
    first = keep("one", "source_only", 0)
    keep("one", "upper_bound-0", 5)
    keep("one", "default", 2)
    keep("one", "dapnet", 3, finished=False)
    keep("two", "source_only", 0)
    again = keep("two", "default", 4)
    keep("two", "source_only", 6, seed=1)
    found = grid_networks([tmp_path / "one", tmp_path / "two"], "glands")
    assert [*found] == [0, 1]
    assert [*found[0]] == ["source_only", "adabn", "default", "default@two"]
    assert found[0]["source_only"] == first
    assert found[0]["default@two"] == again


def test_grid_without_source_only_is_rejected(keep: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"found no network: run python -m benchmarks.adaptation --task glands"):
        grid_networks([tmp_path / "one"], "glands")
    keep("one", "default", 1, seed=2)
    with pytest.raises(SettingsError, match=r"seeds \[2\] without it"):
        grid_networks([tmp_path / "one"], "glands")


def test_degraded_networks(keep: Callable[..., Path], tmp_path: Path) -> None:
    networks = {"source_only": keep("one", "source_only", 0), "default": keep("one", "default", 1)}
    found = {each.name: each for each in candidates(0, networks, {"wbc": list})}
    assert [*found][:2] == ["source_only", "default"]
    assert [name for name, each in found.items() if not each.degraded] == ["source_only", "default"]
    assert {
        "source_only, collapsed to gland", "default, biased to background", "default, noise 0.3",
        "source_only, statistics of wbc", "source_only, 60% trained", "default, 1.5 of the way",
    } <= found.keys()  # fmt: skip
    assert len(found) == 2 + 2 * 7 + 2 + 3
    weights = {
        name: found[name].build().head.classify.weight for name in ("source_only", "default", "default, 1.5 of the way")
    }
    source, adapted, beyond = weights.values()
    torch.testing.assert_close(beyond, source + 1.5 * (adapted - source))
    collapsed = found["default, collapsed to gland"].build()
    assert not collapsed.training
    assert (collapsed(torch.rand(1, 3, 32, 32)).argmax(1) == 1).all()
    assert found["default, 1.5 of the way"].parents == (*found["source_only"].parents, *found["default"].parents)


def test_degraded_networks_without_default(keep: Callable[..., Path]) -> None:
    found = candidates(0, {"source_only": keep("one", "source_only", 0)}, {})
    assert all(each.name.startswith("source_only") for each in found)


def test_networks_with_mixed_statistics(keep: Callable[..., Path]) -> None:
    source = keep("one", "source_only", 0)
    image = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    found = {each.name: each for each in candidates(0, {"source_only": source}, {}, lambda: [image])}
    mixed = {name: each for name, each in found.items() if name.startswith("statistics")}
    assert [*mixed] == [
        "statistics, share 0.25", "statistics, share 0.5", "statistics, share 0.75", "statistics, share 1",
        "statistics, scale 0.5", "statistics, scale 2", "statistics, dense windows", "statistics, sparse windows",
    ]  # fmt: skip
    assert not any(each.degraded for each in mixed.values())
    before = read_statistics(load_network(source)).means[-1]
    means = {name: read_statistics(each.build()).means[-1] for name, each in mixed.items()}
    half, whole = means["statistics, share 0.5"], means["statistics, share 1"]
    torch.testing.assert_close(half, (before + whole) / 2)
    assert not torch.allclose(means["statistics, scale 2"], half)
    assert not torch.allclose(means["statistics, dense windows"], means["statistics, sparse windows"])
