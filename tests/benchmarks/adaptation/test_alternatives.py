"""The idea of each alternative, against an independent computation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.adaptation.alternatives.image_transfer import FourierTransfer, ReinhardTransfer
from benchmarks.adaptation.alternatives.output_adversary import EntropyAdversary, OutputAdversary
from microseg.training.color_augmentation import color_statistics

Make = Callable[..., Any]


@pytest.mark.parametrize("kind", [OutputAdversary, EntropyAdversary])
def test_output_classifier_and_segmenter_get_gradients(make: Make, kind: type) -> None:
    method = make(kind)
    losses = method(method.inputs(0), 1.0)
    assert losses.keys() == {"total", "segmentation", "domain_output"}
    losses["total"].backward()
    reversed_ = [parameter.grad.clone() for parameter in method.network.parameters() if parameter.grad is not None]
    assert all(parameter.grad is not None for parameter in method.output_classifier.parameters())
    assert reversed_
    assert any(id(p) in {id(q) for q in method.output_classifier.parameters()} for g in method.parameter_groups()
               for p in g["params"])  # fmt: skip


def test_self_information_by_hand(make: Make) -> None:
    seen = make(EntropyAdversary).map(torch.log(torch.tensor([[[[0.25]], [[0.75]]]])))
    np.testing.assert_allclose(seen.flatten(), [-0.25 * np.log(0.25), -0.75 * np.log(0.75)], rtol=1e-5)


def test_reinhard_transfers_mean_and_standard_deviation(make: Make) -> None:
    method = make(ReinhardTransfer)
    images = torch.randint(64, 192, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(1)
    moved = color_statistics(method.recolor(images / 255, method.draw_colors(images, generator), generator))
    for mean in moved.mean:
        assert min(float((mean - wanted).abs().max()) for wanted in method.colors.mean) < 0.05


def test_fourier_transfer_changes_only_the_lowest_frequencies(make: Make) -> None:
    method = make(FourierTransfer)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    generator = torch.Generator().manual_seed(1)
    unused = method.draw_colors((255 * images).byte(), generator)
    moved = method.recolor(images, unused, generator)
    before, after = torch.fft.fft2(images), torch.fft.fft2(moved)
    torch.testing.assert_close(after[..., 3:14, 3:14], before[..., 3:14, 3:14], atol=1e-2, rtol=1e-2)
    assert (after[..., 0, 0].abs() - before[..., 0, 0].abs()).abs().min() > 0.1
