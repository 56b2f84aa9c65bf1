"""On a slide, tile borders are no worse than any other place, with a network that sees its whole tile."""

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
from microseg.slides.image_reader import ArraySlide
from microseg.slides.images import read_image
from microseg.synthetic.labs import LAB_A, generate_image, generate_lab

SHIFT = 80  # pixels by which the second segmentation's tiles lie elsewhere; a multiple of the stride
NEAR, FAR = 6, 24


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    lab = generate_lab(tmp_path_factory.mktemp("seams") / "lab", LAB_A, images=1, size=768, labelled=True, seed=0)
    return read_image(next((lab / "images").iterdir()))


@pytest.fixture(scope="module")
def network(section: npt.NDArray[np.uint8]) -> PyramidSegmenter:
    """Of random weights, with pyramid pooling; its classes are as frequent as one another."""
    torch.manual_seed(3)
    config = NetworkConfig(classes=("background", "gland"), encoder="blocks", channels=(8, 16, 16), pyramid_channels=16)
    network = PyramidSegmenter(config).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(section).permute(2, 0, 1)[None].float() / 255)[0]
        network.head.classify.bias[1] -= (logits[1] - logits[0]).median()
    return network


def places(engine: Engine, side: int, shift: int = SHIFT, far: int = FAR) -> tuple[npt.NDArray[np.bool_], ...]:
    """Where the tiles of a square image have their borders, and what is far from any, if all tiles lie elsewhere too.

    Returns:
        Two masks of the image without its first rows and columns: its tiles are those that lie elsewhere.
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
    """Share of pixels that change when all tiles lie elsewhere: at the borders of the first tiles, and far from any."""
    engine = Engine(network, tile=256, halo=halo)
    assert len(engine.plan(*section.shape[:2]).rows) >= 3
    masks = []
    for pixels in (section, section[SHIFT:, SHIFT:]):
        _, rows = slide_strips(engine, ArraySlide(pixels, Path("slide.tif"), None), None, skip_glass=False)
        masks.append(np.concatenate([part.mask for part in rows]))
    changed = masks[0][SHIFT:, SHIFT:] != masks[1]
    border, rest = places(engine, len(section))
    return float(changed[border].mean()), float(changed[rest].mean())


def test_borders_are_no_worse_than_elsewhere(network: PyramidSegmenter, section: npt.NDArray[np.uint8]) -> None:
    border, elsewhere = disagreement(network, section, halo=48)  # six strides: as far as the network sees
    assert 0 < elsewhere < 0.1  # the pyramid's context differs: there is something to disagree on
    assert border <= 1.2 * elsewhere
    cut, _ = disagreement(network, section, halo=0)
    assert cut > 1.5 * border  # what it would be with tiles side by side


@pytest.mark.long
def test_the_usual_tiles_of_the_usual_network(tmp_path: Path) -> None:
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
