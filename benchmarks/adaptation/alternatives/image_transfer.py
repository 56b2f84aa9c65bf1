"""Source crops with the appearance of the target lab, without learning: Reinhard's color transfer and FDA."""

import torch
from torch import Tensor

from microseg.training.adaptation.dual_adaptive import DualAdaptivePyramid
from microseg.training.color_augmentation import ColorMap, color_statistics

__all__ = ["FourierTransfer", "ReinhardTransfer", "swap_amplitudes"]

_FOURIER_BETA = 0.01  # half the side of the swapped square of low frequencies, relative to the image's


class ReinhardTransfer(DualAdaptivePyramid):
    """Transfer of mean and standard deviation of each channel of the optical density, without covariances
    (after Reinhard et al. 2001, there in lαβ).
    """

    def draw_colors(self, images: Tensor, generator: torch.Generator) -> ColorMap:
        """Transfer the colors of random target windows, channel by channel."""
        picks = torch.randint(len(self.colors.mean), (len(images),), generator=generator)
        own, wanted = color_statistics(images.float() / 255), self.colors[picks]
        spread = [it.covariance.diagonal(dim1=1, dim2=2).sqrt() for it in (own, wanted)]  # (B, 3) each
        scale = spread[1] / spread[0]
        return ColorMap(torch.diag_embed(scale).float(), (wanted.mean - scale * own.mean).float())


class FourierTransfer(DualAdaptivePyramid):
    """FDA: the lowest frequencies' amplitudes from a target crop (Yang & Soatto, CVPR 2020)."""

    def recolor(self, images: Tensor, colors: ColorMap, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Swap the amplitudes of the lowest frequencies."""
        step = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        others = self.target.draw(step).images[: len(images)].to(images.device)
        others = others[torch.arange(len(images)) % len(others)]
        return swap_amplitudes(images, others, _FOURIER_BETA)


def swap_amplitudes(images: Tensor, others: Tensor, beta: float) -> Tensor:
    """Replace the amplitudes of the lowest frequencies of images by those of others; the phases stay.

    Args:
        images: (B, 3, S, S) in 0..1.
        others: (B, 3, S, S), or one (1, 3, S, S).
        beta: Half the side of the square of frequencies, relative to S.

    Returns:
        (B, 3, S, S) in 0..1.
    """
    own, wanted = torch.fft.fft2(images), torch.fft.fft2(others)
    amplitude, phase = torch.fft.fftshift(own.abs(), dim=(2, 3)), own.angle()
    reach, middle = max(1, int(beta * images.shape[-1])), images.shape[-1] // 2
    square = slice(middle - reach, middle + reach + 1)
    amplitude[:, :, square, square] = torch.fft.fftshift(wanted.abs(), dim=(2, 3))[:, :, square, square]
    mixed = torch.polar(torch.fft.ifftshift(amplitude, dim=(2, 3)), phase)
    result: Tensor = torch.fft.ifft2(mixed).real.clamp(0, 1)
    return result.contiguous(memory_format=torch.channels_last)
