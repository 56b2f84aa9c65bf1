import pytest
import torch
from torch import nn

from microseg.inference.backends.pytorch import fold_batch_norm
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter


def with_statistics(network: nn.Module, size: int) -> nn.Module:
    """Set statistics of real activations, and affine parameters other than one and zero, as after training."""
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    network.train()
    with torch.no_grad():
        network(torch.rand(2, 3, size, size))
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


@pytest.mark.parametrize("encoder", ["blocks", "resnet18", "tf_efficientnet_lite0"])
def test_folding_removes_every_norm_and_keeps_probabilities(encoder: str) -> None:
    config = NetworkConfig(classes=("background", "gland"), encoder=encoder, channels=(8, 16), pyramid_channels=16)
    network = with_statistics(PyramidSegmenter(config), 64)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_batch_norm(network, torch.rand(1, 3, 64, 64))
    x = torch.rand(2, 3, 96, 64)
    assert norms(network) > 0
    assert norms(folded) == 0
    with torch.no_grad():
        torch.testing.assert_close(folded(x).softmax(1), network(x).softmax(1), atol=1e-5, rtol=0)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_folds_one_channel_as_computed_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)).eval()
    convolution, norm = network
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.constant_(convolution.weight, 2.0)
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(4.0)
    nn.init.constant_(norm.weight, 5.0)
    nn.init.constant_(norm.bias, 7.0)
    folded = fold_batch_norm(network, torch.rand(1, 3, 2, 2))[0]
    assert isinstance(folded, nn.Conv2d)
    assert folded.bias is not None
    assert folded.weight.flatten().tolist() == [5.0] * 3  # 2 · 5 / √4
    assert folded.bias.item() == pytest.approx(7 - 3 * 5 / 2)


class UsedTwice(nn.Module):
    """A convolution whose output has a second use besides the normalization: folding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x)
        total: torch.Tensor = y + self.norm(y)
        return total


def test_does_not_fold_if_the_output_would_change() -> None:
    network = with_statistics(UsedTwice(), 16)
    same = fold_batch_norm(network, torch.rand(1, 3, 16, 16))
    x = torch.rand(1, 3, 8, 8)
    assert norms(same) == 1
    with torch.no_grad():
        torch.testing.assert_close(same(x), network(x))


def test_folds_network_in_training_mode_and_keeps_its_mode() -> None:
    network = with_statistics(
        PyramidSegmenter(NetworkConfig(classes=("b", "c"), encoder="blocks", channels=(4, 8))), 32
    )
    network.train()
    folded = fold_batch_norm(network, torch.rand(1, 3, 32, 32))
    assert network.training
    assert not folded.training
    assert norms(folded) == 0
