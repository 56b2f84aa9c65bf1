import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from microseg.inference.backends import fused_convolutions as module
from microseg.inference.backends.batch_norm_folding import fold_batch_norm
from microseg.inference.backends.fused_convolutions import fuse_convolutions
from microseg.inference.backends.tracing import TracedNetwork
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter


def parts(network: nn.Module) -> tuple[int, int]:
    """Convolutions that are fused, and activations left to be computed by themselves."""
    fused = [part for part in network.modules() if isinstance(part, module._FusedConv2d)]
    inside = {part for one in fused for part in one.plain.modules()}
    left = [part for part in network.modules() if isinstance(part, nn.ReLU | nn.Hardtanh) and part not in inside]
    return len(fused), len(left)


@pytest.mark.parametrize("encoder", ["blocks", "resnet18", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_a_fused_network_gives_the_same_and_so_does_its_graph(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(classes=("background", "gland"), encoder=encoder, channels=(8, 16), pyramid_channels=16)
    network = fold_batch_norm(PyramidSegmenter(config).eval(), torch.rand(1, 3, 64, 64))
    fused = fuse_convolutions(network, torch.rand(1, 3, 64, 64))
    convolutions = sum(isinstance(part, nn.Conv2d) for part in network.modules())
    after_sums = 8 if encoder == "resnet18" else 0  # its blocks end with the activation of a sum
    assert parts(fused) == (convolutions, after_sums)
    x = torch.rand(2, 3, 96, 64)
    torch.testing.assert_close(fused(x), network(x))
    monkeypatch.setattr("microseg.inference.backends.tracing._OFTEN", 1)
    traced = TracedNetwork(fused)
    results = [traced(x), traced(x)]
    assert isinstance(traced._graphs[x.shape], torch.jit.ScriptModule)
    for result in results:
        torch.testing.assert_close(result, network(x))


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 11), (7, 9)])
@torch.no_grad()
def test_padding_as_tensorflow_s(side: int, size: tuple[int, int]) -> None:
    network = nn.Sequential(Conv2dSame(3, 6, side, stride=2, groups=3), nn.ReLU6(inplace=True), nn.Conv2d(6, 4, 1))
    fused = fuse_convolutions(network, torch.rand(1, 3, 16, 16))
    assert parts(fused) == (2, 0)
    x = 20 * torch.rand(2, 3, *size)
    torch.testing.assert_close(fused(x), network(x))


@torch.no_grad()
def test_bounds_strides_and_groups_and_what_is_no_pair() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=(0, 1), bias=False)
            self.bounded = nn.Hardtanh(-0.25, 0.125)
            self.second = nn.Conv2d(4, 4, (1, 3), dilation=2, groups=2)
            self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
            self.last = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.mirrored(self.second(self.bounded(self.first(x)))))
            return result

    network = Twice().eval()
    fused = fuse_convolutions(network, torch.rand(1, 3, 16, 16))
    assert parts(fused) == (2, 1)  # oneDNN does not mirror
    x = torch.randn(1, 3, 15, 18)
    torch.testing.assert_close(fused(x), network(x))


@torch.no_grad()
def test_a_network_that_fusing_would_change_stays_as_it_is() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.activation = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.convolution(x)
            result: Tensor = y - self.activation(y)
            return result

    network = Beside().eval()
    same = fuse_convolutions(network, torch.rand(1, 3, 16, 16))
    assert parts(same) == (0, 1)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(same(x), network(x))


def test_without_the_operator_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(module, "_operator", refuse)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert fuse_convolutions(network, torch.rand(1, 3, 16, 16)) is network
