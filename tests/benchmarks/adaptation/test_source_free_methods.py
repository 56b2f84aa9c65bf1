"""Methods that must not see source images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.adaptation.alternatives.tent import Tent, entropy
from benchmarks.adaptation.methods import METHODS
from microseg.training.adaptation.method import AdaptationMethod

Make = Callable[..., Any]

SOURCE_FREE = [name for name, method in METHODS.items() if method.changes.get("source") == "none"]
KINDS = [kind for name in SOURCE_FREE if isinstance(kind := METHODS[name].kind, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_source_image_is_kept(make: Make, kind: type[AdaptationMethod]) -> None:
    """Even where some are given."""
    assert not kind.needs_source
    method = make(kind)
    names = {sample.image.name for value in vars(method).values() for sample in getattr(value, "samples", ())}
    assert names == {"2.png", "3.png"}  # of the target lab
    assert all(sample.mask is None for value in vars(method).values() for sample in getattr(value, "samples", ()))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_lower_the_loss(make: Make, descend: Callable[..., Any], kind: type) -> None:
    before, after = descend(make(kind, source="none"))
    assert after < before


def test_tent_changes_only_affine_parameters(make: Make, descend: Callable[..., Any]) -> None:
    method = make(Tent, source="none")
    before = {name: value.clone() for name, value in method.network.named_parameters()}
    descend(method)
    layers = {name for name, layer in method.network.named_modules() if isinstance(layer, _BatchNorm)}
    changed = {name for name, value in method.network.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert {name.rsplit(".", 1)[0] for name in changed} <= layers


def test_entropy_by_hand() -> None:
    probabilities = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).reshape(1, 2, 1, 2)
    by_hand = [-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), np.log(2)]
    assert float(entropy(probabilities)) == pytest.approx(np.mean(by_hand))
