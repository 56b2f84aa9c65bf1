import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from microseg.errors import ModelError
from microseg.models.layers import PyramidDecoder, PyramidPooling


def catch_fused(module: PyramidPooling) -> list[Tensor]:
    """Inputs of the fusion, one per forward pass."""
    caught: list[Tensor] = []
    module.fuse.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    return caught


def naive_upsample(grid: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Bilinear, pixel centers aligned, edges clamped; one map."""
    result = np.empty((height, width))
    for i, j in np.ndindex(height, width):
        y = min(max((i + 0.5) * grid.shape[0] / height - 0.5, 0), grid.shape[0] - 1)
        x = min(max((j + 0.5) * grid.shape[1] / width - 0.5, 0), grid.shape[1] - 1)
        a, b = int(y), int(x)
        c, d = min(a + 1, grid.shape[0] - 1), min(b + 1, grid.shape[1] - 1)
        upper = grid[a, b] * (1 - (x - b)) + grid[a, d] * (x - b)
        lower = grid[c, b] * (1 - (x - b)) + grid[c, d] * (x - b)
        result[i, j] = upper * (1 - (y - a)) + lower * (y - a)
    return result


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=3))
@torch.no_grad()
def test_branches_equal_plain_loops(height: int, width: int, bins: list[int]) -> None:
    torch.manual_seed(height * width)
    module = PyramidPooling(2, 6, tuple(bins)).eval()
    caught = catch_fused(module)
    x = torch.randn(1, 2, height, width)
    module(x)
    expected = [x[0].numpy()]
    for grid, layer in zip(bins, module.projections, strict=True):
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        pooled = np.empty((2, grid, grid))
        for i, j in np.ndindex(grid, grid):
            rows = slice(i * height // grid, math.ceil((i + 1) * height / grid))
            columns = slice(j * width // grid, math.ceil((j + 1) * width / grid))
            pooled[:, i, j] = x[0, :, rows, columns].mean(dim=(1, 2))
        projected = np.einsum("oc,cij->oij", layer.weight[:, :, 0, 0].numpy(), pooled)
        projected = np.maximum(projected + layer.bias.numpy()[:, None, None], 0)
        expected.append(np.stack([naive_upsample(one, height, width) for one in projected]))
    np.testing.assert_allclose(caught[0][0].numpy(), np.concatenate(expected), atol=1e-5)


def test_one_bin_is_the_mean_of_the_image() -> None:
    module = PyramidPooling(1, 1, (1,)).eval()
    nn.init.ones_(module.projections[0].weight)  # type: ignore[arg-type]
    caught = catch_fused(module)
    module(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
    assert caught[0][0, 1].tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("channels", [3, 8])
def test_trains_on_one_image(channels: int) -> None:
    torch.manual_seed(0)
    module = PyramidPooling(4, channels, (1, 2, 3, 6))
    for layer in module.projections:
        layer.weight.data.abs_()  # type: ignore[operator]  # no unit is silenced by its ReLU
    x = torch.rand(1, 4, 2, 2, requires_grad=True)
    out = module(x)
    (out * torch.randn_like(out)).sum().backward()
    assert out.shape == (1, channels, 2, 2)
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(layer.weight.grad.any() for layer in module.projections)  # type: ignore[union-attr,operator]


def test_decoder_block_takes_previous_block_and_skip() -> None:
    decoder = PyramidDecoder((3, 5, 7), pyramid_channels=11, channels=(13, 17, 19))
    shapes = [tuple(block[0][0].weight.shape[:2]) for block in decoder.blocks]  # type: ignore[index]
    assert shapes == [(13, 11 + 7), (17, 13 + 5), (19, 17 + 3)]
    encoded = [torch.rand(2, 3, 16, 24), torch.rand(2, 5, 8, 12), torch.rand(2, 7, 4, 6)]
    levels = decoder(encoded, torch.rand(2, 11, 4, 6))
    assert [tuple(level.shape) for level in levels] == [(2, 13, 4, 6), (2, 17, 8, 12), (2, 19, 16, 24)]


def test_every_skip_connection_reaches_the_output() -> None:
    decoder = PyramidDecoder((3, 5, 7), pyramid_channels=11, channels=(8, 8, 8))
    encoded = [torch.rand(2, channels, 16 >> i, 16 >> i, requires_grad=True) for i, channels in enumerate((3, 5, 7))]
    pyramid = torch.rand(2, 11, 4, 4, requires_grad=True)
    decoder(encoded, pyramid)[-1].square().sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in (*encoded, pyramid))


def test_decoder_rejects_another_depth() -> None:
    with pytest.raises(ModelError, match="expected 3 decoder_channels"):
        PyramidDecoder((3, 5, 7), pyramid_channels=8, channels=(8, 8))
