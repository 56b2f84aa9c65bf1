"""TENT: source-free, entropy minimization over the affine parameters of the normalization."""

from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from microseg.datasets.sampling import Crops
from microseg.training.adaptation.normalization import mix_statistics, write_statistics
from microseg.training.adaptation.source_free import SourceFreeMethod
from microseg.training.method import Losses

__all__ = ["Tent", "entropy"]


class Tent(SourceFreeMethod):
    """Entropy minimization with the target's batch statistics; all but scales and shifts of normalization is fixed.

    Reference:
        Wang et al., "Tent: fully test-time adaptation by entropy minimization", ICLR 2021.
    Deviation:
        The network is used as one file for the whole lab. So the statistics at inference are those of the lab's
        images (first measured, then the running mean over the training's batches), not those of each test batch; and
        the network is adapted before inference, as in the paper's offline variant, not during it.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        statistics = self.targets[0].shift.statistics
        for number, lab in enumerate(self.targets[1:], 2):
            statistics = mix_statistics(statistics, lab.shift.statistics, 1 / number)
        for module in (self.network, *([] if self.averaged is None else [self.averaged])):
            write_statistics(module, statistics)
        self.network.requires_grad_(False)
        self.affine = [
            parameter.requires_grad_(True)
            for layer in self.network.modules()
            if isinstance(layer, _BatchNorm)
            for parameter in (layer.weight, layer.bias)
        ]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Scales and shifts of all normalization layers."""
        return [{"params": self.affine, "lr": self.settings.learning_rate}]

    def forward(self, batch: Crops, progress: float) -> Losses:  # noqa: ARG002 (the same at every step)
        """Mean entropy of the prediction."""
        loss = entropy(self.network.head.probabilities(self.network(batch.images)))
        return {"total": loss, "entropy": loss.detach()}


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy over pixels, in nats: (B, K, H, W) → ()."""
    return -(probabilities * probabilities.clamp_min(1e-8).log()).sum(1).mean()
