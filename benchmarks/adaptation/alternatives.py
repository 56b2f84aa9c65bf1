"""The field's alternatives, each as small as it can be: what they add to, or put in place of, our own two levels."""

from typing import Any

import torch
from torch import Tensor, nn

from microseg.models.gradient_reversal import reverse_gradient
from microseg.models.network import Features
from microseg.training.adaptation.dual_adaptive import AdaptationBatch, DualAdaptive
from microseg.training.color_augmentation import color_statistics
from microseg.training.losses.domain import domain_loss
from microseg.training.method import Losses

__all__ = ["EntropyAdversary", "FourierTransfer", "OutputAdversary", "ReinhardTransfer"]

_LAMBDA_OUTPUT = 0.01
_FOURIER_SHARE = 0.01  # β: side of the swapped square of low frequencies, as a share of the image's


class OutputAdversary(DualAdaptive):
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
        """The one on the output."""
        return [*super().classifiers(), self.output_classifier]

    def needs_target(self, batch: AdaptationBatch) -> bool:  # noqa: ARG002 (whatever the batch)
        """Always."""
        return True

    def map(self, logits: Tensor) -> Tensor:
        """What the classifier sees: (B, K, H, W) → (B, K, H, W)."""
        return logits.softmax(1)

    def domain_losses(self, source: Features, target: Features, ramp: float) -> Losses:
        """One more classifier."""
        strength = ramp * _LAMBDA_OUTPUT
        seen = [self.output_classifier(reverse_gradient(self.map(it.logits), strength)) for it in (source, target)]
        loss = 0.5 * (domain_loss(seen[0], False) + domain_loss(seen[1], True))
        return super().domain_losses(source, target, ramp) | {"domain_output": loss}


class EntropyAdversary(OutputAdversary):
    """ADVENT: the same on maps of weighted self-information, −p log p (Vu et al., CVPR 2019)."""

    def map(self, logits: Tensor) -> Tensor:
        """Self-information of each class."""
        log = logits.log_softmax(1)
        return -log.exp() * log


class ReinhardTransfer(DualAdaptive):
    """Mean and spread of each channel of the optical density, without what the channels have in common
    (after Reinhard et al. 2001, there in lαβ).
    """

    def recolor(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Channel by channel."""
        picks = torch.randint(len(self.colors.mean), (len(images),), generator=generator)
        own, wanted = color_statistics(images), self.colors[picks]
        spread = [it.covariance.diagonal(dim1=1, dim2=2).sqrt() for it in (own, wanted)]  # (B, 3) each
        scale = (spread[1] / spread[0]).float()[:, :, None, None]
        mean = [it.mean.float()[:, :, None, None] for it in (own, wanted)]
        density = -torch.log(images.clamp(1 / 256, 1))
        return torch.exp(-((density - mean[0]) * scale + mean[1])).clamp(0, 1)


class FourierTransfer(DualAdaptive):
    """FDA: the lowest frequencies' amplitudes from a target crop (Yang & Soatto, CVPR 2020)."""

    def recolor(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Swap the middle of the spectrum's amplitude."""
        step = int(torch.randint(2**31, (), generator=generator))
        others = self.target.draw(step).images[: len(images)]
        others = others[torch.arange(len(images)) % len(others)]
        own, wanted = torch.fft.fft2(images), torch.fft.fft2(others)
        amplitude, phase = torch.fft.fftshift(own.abs(), dim=(2, 3)), own.angle()
        reach = max(1, int(_FOURIER_SHARE * images.shape[-1]))
        middle = images.shape[-1] // 2
        square = slice(middle - reach, middle + reach + 1)
        amplitude[:, :, square, square] = torch.fft.fftshift(wanted.abs(), dim=(2, 3))[:, :, square, square]
        mixed = torch.polar(torch.fft.ifftshift(amplitude, dim=(2, 3)), phase)
        result: Tensor = torch.fft.ifft2(mixed).real.clamp(0, 1)
        return result.contiguous(memory_format=torch.channels_last)
