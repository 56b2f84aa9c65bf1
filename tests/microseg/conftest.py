from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from microseg.inference.engine import Engine
from microseg.models.config import NetworkConfig
from microseg.models.heads import SemanticHead
from microseg.models.network import PyramidSegmenter
from microseg.outputs.record import Provenance
from microseg.slides.images import write_png
from tests.microseg.inference.counting import Counting


class Brightness(PyramidSegmenter):
    """Class 1 where a pixel is bright; with ``context``, each tile's own mean changes its level."""

    def __init__(self, mpp: float | None = None, context: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.config = NetworkConfig(classes=("background", "bright"), mpp=mpp)
        self.stride, self.context = 16, context
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.head = SemanticHead((1,), classes=2)
        self.channels = self.config.classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.mean(1, keepdim=True) - 0.5 + self.context * (x.mean((1, 2, 3), keepdim=True) - 0.5)
        return self.scale * torch.cat((-level, level), dim=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def brightness() -> Callable[..., PyramidSegmenter]:
    return Brightness


@pytest.fixture
def engine() -> Engine:
    return Engine(Brightness(), tile=128, halo=16)


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        model="microseg-segmenter/3",
        run_id="r1",
        datasets={"lab_a": "0a1b.dir"},
        commit="c0ffee",
        parameters={"lr": 0.1},
    )


@pytest.fixture
def squares() -> npt.NDArray[np.uint8]:
    """A dark image with a bright square of 10 and one of 4 pixels, the first with a hole of 2."""
    image = np.full((40, 60, 3), 20, np.uint8)
    image[5:15, 10:20] = 230
    image[8:10, 13:15] = 20
    image[30:34, 50:54] = 230
    return image


@pytest.fixture
def images(tmp_path: Path, squares: npt.NDArray[np.uint8]) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        write_png(path, np.roll(squares, number, axis=1))
    return paths


@pytest.fixture
def counting(brightness: type) -> Counting:
    return Counting(brightness(), tile=128, halo=16)
