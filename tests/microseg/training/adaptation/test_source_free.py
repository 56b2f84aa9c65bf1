from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn import functional

from microseg.config.training_params import AdaptSettings
from microseg.datasets.sampling import Crops, CropSampler, Sample
from microseg.training.adaptation.domain_shift import TargetLab
from microseg.training.adaptation.normalization import read_statistics
from microseg.training.adaptation.self_training import shared_statistics
from microseg.training.adaptation.source_free import SourceFree
from microseg.training.devices import Progress
from microseg.training.loop import fit

SIDE = 16
Make = Callable[..., SourceFree]


@pytest.fixture
def make(target_lab: TargetLab, tiny_network: Callable[..., Any], tmp_path: Path) -> Make:
    def build(source: Any = (), **values: Any) -> SourceFree:
        settings = AdaptSettings(**{"source": "none", "steps": 6, "zoom_range": (1, 1), "warmup_steps": 1} | values)
        options: dict[str, Any] = {"crop": SIDE, "batch": 2, "seed": 3, "folder": tmp_path / "work"}
        return SourceFree(tiny_network(), source, [target_lab], settings, **options)

    return build


def random_batch() -> Crops:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(2, (2, SIDE, SIDE), generator=generator)
    masks[0, :3] = 255
    return Crops(torch.rand(2, 3, SIDE, SIDE, generator=generator), masks)


def test_loss_by_hand(make: Make) -> None:
    """Cross entropy to the pseudo-labels, and half of 0.1 times the squared distance to the first weights."""
    method = make().train()
    with torch.no_grad():
        for weight in method.network.parameters():
            weight += 0.1
    batch = random_batch()
    losses = method(batch, 0.5)
    count = sum(weight.numel() for weight in method.network.parameters())
    assert float(losses["anchor"]) == pytest.approx(0.05 * 0.01 * count, rel=1e-3)
    assert batch.masks is not None
    expected = functional.cross_entropy(method.network(batch.images), batch.masks, ignore_index=255)
    assert float(losses["pseudo_labels"]) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(losses["total"].detach()) == pytest.approx(float(losses["anchor"] + losses["pseudo_labels"]))
    losses["total"].backward()
    assert all(weight.grad is not None for weight in method.network.parameters())


def test_statistics_are_shared_and_fixed(make: Make, target_lab: TargetLab, tiny_network: Callable[..., Any]) -> None:
    method = make().train()
    expected = shared_statistics(tiny_network(), [target_lab])
    method(random_batch(), 0.0)
    for module in (method.network, method.result()):
        for one, other in zip(read_statistics(module).means, expected.means, strict=True):
            torch.testing.assert_close(one, other)


def test_running_statistics_follow_the_batches(make: Make) -> None:
    method = make(normalization="running").train()
    before = read_statistics(method.network)
    method(random_batch(), 0.0)
    assert not torch.equal(before.means[0], read_statistics(method.network).means[0])


def test_training_lowers_the_loss_and_opens_no_source_image(
    make: Make,
    noise: tuple[list[Sample], list[Sample]],
    fabric: Fabric,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    original = CropSampler.__init__

    def spy(self: CropSampler, samples: list[Sample], **values: Any) -> None:
        opened.extend(sample.image.name for sample in samples)
        original(self, samples, **values)

    monkeypatch.setattr(CropSampler, "__init__", spy)
    method = make(noise[0], steps=20, learning_rate=5e-3, target_color_jitter=0.0, ema_decay=0.0)
    losses: list[float] = []
    fit(method, fabric=fabric, progress=Progress(on_step=lambda _step, values: losses.append(values["pseudo_labels"])))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert opened
    assert all(name.startswith("target") for name in opened)
    assert sorted(it.name for it in (tmp_path / "work").glob("round-*")) == ["round-0", "round-1", "round-2"]
