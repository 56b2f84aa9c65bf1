from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from microseg.inference.engine import Engine
from microseg.inference.stream import Confidence, MaskRows, stream_mask
from microseg.inference.tiling import Tile
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.slides.image_reader import ArraySlide
from microseg.slides.slide import SlideView

Picture = npt.NDArray[np.uint8]


def noise(height: int, width: int) -> Picture:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def view(pixels: Picture, zoom: float = 1.0) -> SlideView:
    return SlideView(ArraySlide(pixels, Path("slide.tif"), None), zoom)


def small_network(classes: int = 3) -> PyramidSegmenter:
    torch.manual_seed(0)
    names = ("background", "gland", "stroma")[:classes]
    return PyramidSegmenter(
        NetworkConfig(classes=names, encoder="blocks", channels=(8, 16), pyramid_channels=16)
    ).eval()


def joined(rows: list[MaskRows]) -> tuple[Picture, Picture]:
    tops = np.cumsum([0, *(len(part.mask) for part in rows)])
    assert [part.top for part in rows] == tops[:-1].tolist()
    return np.concatenate([part.mask for part in rows]), np.concatenate([part.certainty for part in rows])


@pytest.mark.parametrize("size", [(333, 470), (100, 500), (500, 100), (40, 30), (257, 256)])
def test_the_mask_is_that_of_the_whole_image(size: tuple[int, int]) -> None:
    engine, image = Engine(small_network(), tile=96, halo=16, batch=3), noise(*size)
    whole = engine.probabilities(image)
    total = Confidence()
    mask, certainty = joined(list(stream_mask(engine, view(image), lambda _tile: True, total)))
    highest = np.sort(whole, axis=0)
    decided = highest[-1] - highest[-2] > 1e-4
    np.testing.assert_array_equal(mask[decided], whole.argmax(0)[decided])
    assert decided.mean() > 0.99
    np.testing.assert_allclose(certainty / 255, whole.max(0), atol=2.1e-3)
    assert total.pixels == size[0] * size[1]
    assert total.highest / total.pixels == pytest.approx(whole.max(0).mean(), abs=1e-5)
    assert total.entropy / total.pixels == pytest.approx(-(whole * np.log(whole)).sum(0).mean(), abs=1e-5)


@pytest.mark.parametrize("zoom", [0.6, 1.5])
def test_the_mask_at_another_scale(zoom: float) -> None:
    engine = Engine(small_network(2), tile=96, halo=16)
    image = np.repeat(np.repeat(noise(30, 40), 10, 0), 10, 1)
    from PIL import Image

    size = (round(400 * zoom), round(300 * zoom))
    whole = engine.probabilities(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)))
    mask, _ = joined(list(stream_mask(engine, view(image, zoom), lambda _tile: True, Confidence())))
    assert mask.shape == whole.shape[1:]
    assert (mask == whole.argmax(0)).mean() > 0.995


def test_what_is_not_wanted_is_background_and_costs_nothing(brightness: Callable[..., PyramidSegmenter]) -> None:
    class Counting(Engine):
        tiles = 0

        def predict(self, tiles: Picture) -> npt.NDArray[np.float32]:
            self.tiles += len(tiles)
            return super().predict(tiles)

    engine = Counting(brightness(), tile=128, halo=16)
    image = np.full((400, 500, 3), 250, np.uint8)

    def right_half(tile: Tile) -> bool:
        return tile.columns.inner_start >= 250

    total = Confidence()
    mask, certainty = joined(list(stream_mask(engine, view(image), right_half, total)))
    plan = engine.plan(400, 500)
    assert engine.tiles == sum(map(right_half, plan)) < len(plan) / 2 + 4
    first = min(tile.columns.inner_start for tile in plan if right_half(tile))
    assert (mask[:, :first] == 0).all()
    assert (mask[:, first + 16 :] == 1).all()
    assert (certainty[:, :first] == 0).all()
    assert total.pixels == (500 - first) * 400
    nothing = list(stream_mask(engine, view(image), lambda _tile: False, total))
    assert not joined(nothing)[0].any()


def test_holes_among_tiles_sum_to_one(brightness: Callable[..., PyramidSegmenter]) -> None:
    """Where wanted and unwanted tiles meet on any side, probabilities still sum to one: half of the fade each."""
    engine = Engine(brightness(), tile=128, halo=16)
    image = np.full((600, 600, 3), 255, np.uint8)  # class 1 with certainty
    plan = engine.plan(600, 600)
    rng = np.random.default_rng(1)
    chosen = {(tile.rows.start, tile.columns.start): bool(rng.random() < 0.5) for tile in plan}

    def wanted(tile: Tile) -> bool:
        return chosen[tile.rows.start, tile.columns.start]

    mask, _ = joined(list(stream_mask(engine, view(image), wanted, Confidence())))
    expected = np.zeros((600, 600), np.float32)
    bright = engine.probabilities(image)[1]
    for tile in plan:
        if wanted(tile):
            expected[tile.rows.inner, tile.columns.inner] += tile.weights * bright[tile.rows.inner, tile.columns.inner]
    clear = np.abs(expected - 0.5) > 1e-3
    np.testing.assert_array_equal(mask[clear], expected[clear] > 0.5)
    assert clear.mean() > 0.98


def test_few_tiles_are_in_memory_at_once(brightness: Callable[..., PyramidSegmenter]) -> None:
    engine = Engine(brightness(), tile=128, halo=16, batch=2)
    slide = view(noise(128, 5000))
    read, given = 0, 0
    inside = slide.read

    def counting(rows: slice, columns: slice) -> Picture:
        nonlocal read
        read += 1
        return inside(rows, columns)

    predict = engine.predict
    ahead = list[int]()

    def watching(tiles: Picture) -> npt.NDArray[np.float32]:
        nonlocal given
        given += len(tiles)
        ahead.append(read - given)
        return predict(tiles)

    slide.read = counting  # type: ignore[method-assign]
    engine.predict = watching  # type: ignore[method-assign]
    list(stream_mask(engine, slide, lambda _tile: True, Confidence()))
    assert len(ahead) > 20
    assert max(ahead) <= 4 * engine.batch
