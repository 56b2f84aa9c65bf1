"""On a slide, tile borders are no worse than any other place, with a network that sees its whole tile."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from microseg.data import read_image
from microseg.data.slides import ArraySlide
from microseg.data.synthetic import LAB_A, make_lab
from microseg.inference import Engine, slide_rows
from microseg.model import NetworkConfig, PyramidSegmenter

SHIFT = 80  # pixels by which the second segmentation's tiles lie elsewhere; a multiple of the stride
NEAR, FAR = 6, 24


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    lab = make_lab(tmp_path_factory.mktemp("seams") / "lab", LAB_A, images=1, size=768, labelled=True, seed=0)
    return read_image(next((lab / "images").iterdir()))


@pytest.fixture(scope="module")
def network(section: npt.NDArray[np.uint8]) -> PyramidSegmenter:
    """Of random weights, with pyramid pooling; its classes are as frequent as one another."""
    torch.manual_seed(3)
    config = NetworkConfig(classes=("background", "gland"), encoder="blocks", filters=(8, 16, 16), pyramid_filters=16)
    network = PyramidSegmenter(config).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(section).permute(2, 0, 1)[None].float() / 255)[0]
        network.head.bias[1] -= (logits[1] - logits[0]).median()
    return network


def disagreement(network: PyramidSegmenter, section: npt.NDArray[np.uint8], halo: int) -> tuple[float, float]:
    """Share of pixels that change when all tiles lie elsewhere: at the borders of the first tiles, and far from any."""
    engine = Engine(network, tile=256, halo=halo)
    masks = []
    for pixels in (section, section[SHIFT:, SHIFT:]):
        _, rows = slide_rows(engine, ArraySlide(pixels, Path("slide.tif"), None), None, skip_glass=False)
        masks.append(np.concatenate([part.mask for part in rows]))
    changed = masks[0][SHIFT:, SHIFT:] != masks[1]
    first = engine.plan(*section.shape[:2])
    second = engine.plan(*changed.shape)
    one, other = ([(a.inner_stop + b.inner_start) // 2 for a, b in itertools.pairwise(p.rows)] for p in (first, second))
    assert len(one) >= 2
    at = np.arange(changed.shape[0])
    distance_one = np.min([np.abs(at - (seam - SHIFT)) for seam in one], axis=0)
    distance_other = np.min([np.abs(at - seam) for seam in (*other, 0)], axis=0)  # and the second one's edge
    near = (distance_one <= NEAR) & (distance_other > FAR)
    far = (distance_one > FAR) & (distance_other > FAR)
    assert near.sum() > NEAR
    assert far.sum() > FAR
    borders = (near[:, None] & far[None, :]) | (near[None, :] & far[:, None])
    return float(changed[borders].mean()), float(changed[np.ix_(far, far)].mean())


def test_borders_are_no_worse_than_elsewhere(network: PyramidSegmenter, section: npt.NDArray[np.uint8]) -> None:
    border, elsewhere = disagreement(network, section, halo=48)  # six strides: as far as the network sees
    assert 0 < elsewhere < 0.1  # the pyramid's context differs: there is something to disagree on
    assert border <= 1.2 * elsewhere
    cut, _ = disagreement(network, section, halo=0)
    assert cut > 1.5 * border  # what it would be with tiles side by side
