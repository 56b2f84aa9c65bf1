from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from microseg.inference.engine import Engine
from microseg.inference.stream import stream_mask
from microseg.inference.tiling import Tile
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.outputs.image_summary import ConfidenceSums
from microseg.outputs.writers import MaskStrip
from microseg.slides.slide import ArraySlide, SlideView

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


def joined(rows: list[MaskStrip]) -> tuple[Picture, Picture]:
    tops = np.cumsum([0, *(len(part.mask) for part in rows)])
    assert [part.top for part in rows] == tops[:-1].tolist()
    return np.concatenate([part.mask for part in rows]), np.concatenate([part.confidence for part in rows])


@pytest.mark.parametrize("size", [(333, 470), (100, 500), (500, 100), (40, 30), (257, 256)])
def test_mask_equals_that_of_the_whole_image(size: tuple[int, int]) -> None:
    engine, image = Engine(small_network(), tile=96, halo=16, batch=3), noise(*size)
    whole = engine.probabilities(image)
    total = ConfidenceSums()
    mask, confidence = joined(list(stream_mask(engine, view(image), lambda _tile: True, total)))
    highest = np.sort(whole, axis=0)
    decided = highest[-1] - highest[-2] > 1e-4
    np.testing.assert_array_equal(mask[decided], whole.argmax(0)[decided])
    assert decided.mean() > 0.99
    np.testing.assert_allclose(confidence / 255, whole.max(0), atol=2.1e-3)
    assert total.pixels == size[0] * size[1]
    assert total.highest / total.pixels == pytest.approx(whole.max(0).mean(), abs=1e-5)
    assert total.entropy / total.pixels == pytest.approx(-(whole * np.log(whole)).sum(0).mean(), abs=1e-5)


@pytest.mark.parametrize("zoom", [0.6, 1.5])
def test_mask_at_another_pixel_size(zoom: float) -> None:
    engine = Engine(small_network(2), tile=96, halo=16)
    image = np.repeat(np.repeat(noise(30, 40), 10, 0), 10, 1)
    from PIL import Image

    size = (round(400 * zoom), round(300 * zoom))
    whole = engine.probabilities(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)))
    mask, _ = joined(list(stream_mask(engine, view(image, zoom), lambda _tile: True, ConfidenceSums())))
    assert mask.shape == whole.shape[1:]
    assert (mask == whole.argmax(0)).mean() > 0.995


def test_does_not_compute_tiles_that_are_not_selected(
    brightness: Callable[..., PyramidSegmenter],
) -> None:
    engine, computed = Engine(brightness(), tile=128, halo=16), list[int]()
    predict = engine._backend.predict
    engine._backend.predict = lambda tiles: computed.append(len(tiles)) or predict(tiles)  # type: ignore[method-assign, func-returns-value]
    image = np.full((400, 500, 3), 250, np.uint8)

    def right_half(tile: Tile) -> bool:
        return tile.columns.inner_start >= 250

    total = ConfidenceSums()
    mask, confidence = joined(list(stream_mask(engine, view(image), right_half, total)))
    plan = engine.plan(400, 500)
    assert sum(computed) == sum(map(right_half, plan)) < len(plan) / 2 + 4
    first = min(tile.columns.inner_start for tile in plan if right_half(tile))
    assert (mask[:, :first] == 0).all()
    assert (mask[:, first + 16 :] == 1).all()
    assert (confidence[:, :first] == 0).all()
    assert total.pixels == (500 - first) * 400
    nothing = list(stream_mask(engine, view(image), lambda _tile: False, total))
    assert not joined(nothing)[0].any()


def test_probabilities_sum_to_one_beside_skipped_tiles(brightness: Callable[..., PyramidSegmenter]) -> None:
    """Where selected and other tiles meet, probabilities sum to one: each contributes half of the blend."""
    engine = Engine(brightness(), tile=128, halo=16)
    image = np.full((600, 600, 3), 255, np.uint8)  # class 1 with confidence
    plan = engine.plan(600, 600)
    rng = np.random.default_rng(1)
    chosen = {(tile.rows.start, tile.columns.start): bool(rng.random() < 0.5) for tile in plan}

    def selected(tile: Tile) -> bool:
        return chosen[tile.rows.start, tile.columns.start]

    mask, _ = joined(list(stream_mask(engine, view(image), selected, ConfidenceSums())))
    expected = np.zeros((600, 600), np.float32)
    bright = engine.probabilities(image)[1]
    for tile in plan:
        if selected(tile):
            expected[tile.rows.inner, tile.columns.inner] += tile.weights * bright[tile.rows.inner, tile.columns.inner]
    clear = np.abs(expected - 0.5) > 1e-3
    np.testing.assert_array_equal(mask[clear], expected[clear] > 0.5)
    assert clear.mean() > 0.98


def test_few_tiles_are_in_memory(brightness: Callable[..., PyramidSegmenter]) -> None:
    engine = Engine(brightness(), tile=128, halo=16, batch=2)
    slide = view(noise(128, 5000))
    read, given = 0, 0
    inside = slide.read

    def counting(rows: slice, columns: slice) -> Picture:
        nonlocal read
        read += 1
        return inside(rows, columns)

    predict = engine._backend.predict
    ahead = list[int]()

    def watching(tiles: Picture) -> npt.NDArray[np.float32]:
        nonlocal given
        given += len(tiles)
        ahead.append(read - given)
        return predict(tiles)

    slide.read = counting  # type: ignore[method-assign]
    engine._backend.predict = watching  # type: ignore[method-assign]
    list(stream_mask(engine, slide, lambda _tile: True, ConfidenceSums()))
    assert len(ahead) > 20
    assert max(ahead) <= 4 * engine.batch
