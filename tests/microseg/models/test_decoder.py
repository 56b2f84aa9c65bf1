import pytest
import torch

from microseg.errors import ModelError
from microseg.models.decoder import PyramidDecoder


def test_each_block_takes_the_one_before_and_the_same_size_skip() -> None:
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


def test_rejects_another_depth() -> None:
    with pytest.raises(ModelError, match="expected 3 decoder_channels"):
        PyramidDecoder((3, 5, 7), pyramid_channels=8, channels=(8, 8))
