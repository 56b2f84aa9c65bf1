"""Published adaptation methods to compare with, each as the smallest change of `DualAdaptivePyramid`."""

from typing import Any

import torch
from torch import Tensor, nn

from microseg.models.domain_classifiers import reverse_gradient
from microseg.models.network import Features
from microseg.training.adaptation.dual_adaptive import AdaptationBatch, DualAdaptivePyramid, domain_pair_loss
from microseg.training.color_augmentation import color_statistics
from microseg.training.method import Losses

__all__ = ["EntropyAdversary", "FourierTransfer", "OutputAdversary", "ReinhardTransfer"]

_LAMBDA_OUTPUT = 0.01
_FOURIER_BETA = 0.01  # side of the swapped square of low frequencies, relative to the image's


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


class ReinhardTransfer(DualAdaptivePyramid):
    """Transfer of mean and standard deviation of each channel of the optical density, without covariances
    (after Reinhard et al. 2001, there in lαβ).
    """

    def recolor(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Transfer the colors of random target windows, channel by channel."""
        picks = torch.randint(len(self.colors.mean), (len(images),), generator=generator)
        own, wanted = color_statistics(images), self.colors[picks]
        spread = [it.covariance.diagonal(dim1=1, dim2=2).sqrt() for it in (own, wanted)]  # (B, 3) each
        scale = (spread[1] / spread[0]).float()[:, :, None, None]
        mean = [it.mean.float()[:, :, None, None] for it in (own, wanted)]
        density = -torch.log(images.clamp(1 / 256, 1))
        return torch.exp(-((density - mean[0]) * scale + mean[1])).clamp(0, 1)


class FourierTransfer(DualAdaptivePyramid):
    """FDA: the lowest frequencies' amplitudes from a target crop (Yang & Soatto, CVPR 2020)."""

    def recolor(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Swap the amplitudes of the lowest frequencies."""
        step = int(torch.randint(2**31, (), generator=generator))
        others = self.target.draw(step).images[: len(images)]
        others = others[torch.arange(len(images)) % len(others)]
        own, wanted = torch.fft.fft2(images), torch.fft.fft2(others)
        amplitude, phase = torch.fft.fftshift(own.abs(), dim=(2, 3)), own.angle()
        reach = max(1, int(_FOURIER_BETA * images.shape[-1]))
        middle = images.shape[-1] // 2
        square = slice(middle - reach, middle + reach + 1)
        amplitude[:, :, square, square] = torch.fft.fftshift(wanted.abs(), dim=(2, 3))[:, :, square, square]
        mixed = torch.polar(torch.fft.ifftshift(amplitude, dim=(2, 3)), phase)
        result: Tensor = torch.fft.ifft2(mixed).real.clamp(0, 1)
        return result.contiguous(memory_format=torch.channels_last)
