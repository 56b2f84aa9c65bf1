"""Networks adapted by nothing but the batch-norm statistics of the target lab, some with wrong assumptions."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.domain_shift import center_crop, resize, to_batch
from microseg.training.adaptation.normalization import (
    NormStatistics,
    measure_statistics,
    mix_statistics,
    read_statistics,
    write_statistics,
)

__all__ = ["mixed_statistics"]

_SHARES = (0.25, 0.5, 0.75, 1.0)
_SCALES = (0.5, 2.0)
_SIDE = 384  # pixels, of the center crops that statistics are measured on
_WINDOW = 128  # pixels
_WINDOWS = 40  # largest number of windows

Image = npt.NDArray[np.uint8]
Images = Callable[[], Sequence[Image]]


def mixed_statistics() -> dict[str, Callable[..., PyramidSegmenter]]:
    """Functions of a network and of the target lab's images that return the network with the lab's statistics mixed in.

    The share of the lab's statistics is 0.25 to 1; or they are measured at another scale; or on the windows with the
    most, or the least, predicted foreground, as a changed class balance would.
    """
    shares = {f"share {share:g}": partial(_mixed, share=share, measure=_of_images) for share in _SHARES}
    scales = {
        f"scale {scale:g}": partial(_mixed, share=0.5, measure=partial(_of_images, scale=scale)) for scale in _SCALES
    }
    balances = {
        name: partial(_mixed, share=0.5, measure=partial(_of_windows, most=most))
        for name, most in (("dense windows", True), ("sparse windows", False))
    }
    return {**shares, **scales, **balances}


def _mixed(
    network: PyramidSegmenter,
    images: Images,
    share: float,
    measure: Callable[[PyramidSegmenter, Sequence[Image]], NormStatistics],
) -> PyramidSegmenter:
    result = copy.deepcopy(network).eval()
    write_statistics(result, mix_statistics(read_statistics(network), measure(result, images()), share))
    return result


def _of_images(network: PyramidSegmenter, images: Sequence[Image], scale: float = 1.0) -> NormStatistics:
    def zoomed(image: Image) -> torch.Tensor:
        batch = to_batch(center_crop(image, round(_SIDE / scale)), torch.device("cpu"))
        return resize(batch, *(max(2 * network.stride, round(length * scale)) for length in batch.shape[-2:]))

    return measure_statistics(network, (zoomed(image) for image in images))


def _of_windows(network: PyramidSegmenter, images: Sequence[Image], most: bool) -> NormStatistics:
    engine, windows = Engine(network), []
    for image in images:
        foreground = engine.probabilities(image).argmax(0) > 0
        height, width = (min(_WINDOW, length) for length in foreground.shape)
        for top in range(0, foreground.shape[0] - height + 1, height):
            for left in range(0, foreground.shape[1] - width + 1, width):
                place = slice(top, top + height), slice(left, left + width)
                windows.append((float(foreground[place].mean()), image[place]))
    windows.sort(key=lambda window: window[0], reverse=most)
    chosen = windows[: max(2, min(_WINDOWS, len(windows) // 4))]
    return measure_statistics(network, (to_batch(image, torch.device("cpu")) for _, image in chosen))
