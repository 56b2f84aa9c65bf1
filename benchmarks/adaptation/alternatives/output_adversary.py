"""A domain classifier on the output of the segmenter: AdaptSegNet and ADVENT."""

from typing import Any

from torch import Tensor, nn

from microseg.models.domain_classifiers import reverse_gradient
from microseg.models.network import Features
from microseg.training.adaptation.dual_adaptive import AdaptationBatch, DualAdaptivePyramid, domain_pair_loss
from microseg.training.method import Losses

__all__ = ["EntropyAdversary", "OutputAdversary"]

_LAMBDA_OUTPUT = 0.01


class OutputAdversary(DualAdaptivePyramid):
    """AdaptSegNet at one level: a patch classifier on the class probabilities (Tsai et al., CVPR 2018)."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        classes, channels = len(self.network.config.classes), 32
        self.output_classifier = nn.Sequential(
            nn.Conv2d(classes, channels, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 1, kernel_size=4, stride=2, padding=1),
        )

    def classifiers(self) -> list[nn.Module]:
        """The classifiers of both levels, if enabled, and the one on the output."""
        return [*super().classifiers(), self.output_classifier]

    def needs_target(self, batch: AdaptationBatch) -> bool:  # noqa: ARG002 (for any batch)
        """Whether a loss depends on the target crops: always."""
        return True

    def map(self, logits: Tensor) -> Tensor:
        """Input of the classifier: (B, K, H, W) → (B, K, H, W)."""
        return logits.softmax(1)

    def domain_losses(self, source: Features, target: Features, strength: float) -> Losses:
        """Losses of the classifiers of both levels, if enabled, and of the one on the output."""
        weight = strength * _LAMBDA_OUTPUT
        logits = [self.output_classifier(reverse_gradient(self.map(it.logits), weight)) for it in (source, target)]
        return super().domain_losses(source, target, strength) | {"domain_output": domain_pair_loss(*logits)}


class EntropyAdversary(OutputAdversary):
    """ADVENT: as AdaptSegNet, on maps of weighted self-information, −p log p (Vu et al., CVPR 2019)."""

    def map(self, logits: Tensor) -> Tensor:
        """Self-information of each class."""
        log = logits.log_softmax(1)
        return -log.exp() * log
