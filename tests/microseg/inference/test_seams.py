"""Tile borders are not visible in the mask of a slide, with a network whose output depends on the whole tile."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks.workload import make_network
from microseg.inference.engine import Engine
from microseg.inference.slide import slide_strips
from microseg.models.config import NetworkConfig
from microseg.models.files import load_network
from microseg.models.network import PyramidSegmenter
from microseg.slides.images import read_image
from microseg.slides.slide import ArraySlide
from microseg.synthetic.labs import LAB_A, generate_image, generate_lab

SHIFT = 80  # pixels by which the tiles of the second segmentation are shifted; a multiple of the stride
NEAR, FAR = 6, 24


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    lab = generate_lab(tmp_path_factory.mktemp("seams") / "lab", LAB_A, images=1, size=768, labelled=True, seed=0)
    return read_image(next((lab / "images").iterdir()))


@pytest.fixture(scope="module")
def network(section: npt.NDArray[np.uint8]) -> PyramidSegmenter:
    """Random weights, with pyramid pooling; both classes are equally frequent."""
    torch.manual_seed(3)
    config = NetworkConfig(classes=("background", "gland"), encoder="blocks", channels=(8, 16, 16), pyramid_channels=16)
    network = PyramidSegmenter(config).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(section).permute(2, 0, 1)[None].float() / 255)[0]
        network.head.classify.bias[1] -= (logits[1] - logits[0]).median()
    return network


def places(engine: Engine, side: int, shift: int = SHIFT, far: int = FAR) -> tuple[npt.NDArray[np.bool_], ...]:
    """Pixels at the tile borders of a square image, and pixels far from the borders of both segmentations.

    Returns:
        Two masks of the image without its first rows and columns, as in the second segmentation.
    """
    first, second = engine.plan(side, side), engine.plan(side - shift, side - shift)
    one, other = ([(a.inner_stop + b.inner_start) // 2 for a, b in itertools.pairwise(p.rows)] for p in (first, second))
    assert one
    at = np.arange(side - shift)
    distance_one = np.min([np.abs(at - (seam - shift)) for seam in one], axis=0)
    distance_other = np.min([np.abs(at - seam) for seam in (*other, 0)], axis=0)  # and the second one's edge
    near = (distance_one <= NEAR) & (distance_other > far)
    rest = (distance_one > far) & (distance_other > far)
    assert near.sum() > NEAR
    assert rest.sum() > far
    return (near[:, None] & rest[None, :]) | (near[None, :] & rest[:, None]), rest[:, None] & rest[None, :]


def disagreement(network: PyramidSegmenter, section: npt.NDArray[np.uint8], halo: int) -> tuple[float, float]:
    """Fraction of pixels that change when tiles are shifted: at borders of the first tiles, and far from borders."""
    engine = Engine(network, tile=256, halo=halo)
    assert len(engine.plan(*section.shape[:2]).rows) >= 3
    masks = []
    for pixels in (section, section[SHIFT:, SHIFT:]):
        _, _, strips = slide_strips(engine, ArraySlide(pixels, Path("slide.tif"), None), None, skip_glass=False)
        masks.append(np.concatenate([part.mask for part in strips]))
    changed = masks[0][SHIFT:, SHIFT:] != masks[1]
    border, rest = places(engine, len(section))
    return float(changed[border].mean()), float(changed[rest].mean())


def test_tile_borders_change_no_more_than_the_rest(network: PyramidSegmenter, section: npt.NDArray[np.uint8]) -> None:
    border, elsewhere = disagreement(network, section, halo=48)  # six strides: the receptive field of the encoder
    assert 0 < elsewhere < 0.1  # pyramid pooling has another context, so some pixels differ
    assert border <= 1.2 * elsewhere
    cut, _ = disagreement(network, section, halo=0)
    assert cut > 1.5 * border  # without overlap


@pytest.mark.long
def test_tile_borders_of_the_default_network(tmp_path: Path) -> None:
    make_network(tmp_path / "network")
    network = load_network(tmp_path / "network")
    section, _ = generate_image(LAB_A, 1280, 1.0, seed=5)

    def changes(engine: Engine) -> tuple[float, float]:
        border, elsewhere = [], []
        for shift in (96, 160, 224):
            here, there = (engine.probabilities(part)[1] for part in (section, section[shift:, shift:]))
            change = np.abs(here[shift:, shift:] - there)
            masks = places(engine, len(section), shift, 40)
            border.append(change[masks[0]].mean())
            elsewhere.append(change[masks[1]].mean())
        return float(np.mean(border)), float(np.mean(elsewhere))

    border, elsewhere = changes(Engine(network))
    assert border <= 1.5 * elsewhere
    cut, _ = changes(Engine(network, halo=0))
    assert cut > 5 * border
