"""Tiles that several threads read."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from microseg.slides.tiff_image import TiffImage
from microseg.slides.tile_cache import TileCache


def tile(value: int) -> npt.NDArray[Any]:
    return np.full((10, 10), value, np.uint8)


def test_threads_decode_different_tiles_at_once_and_each_once() -> None:
    cache, both, decoded = TileCache(1000), threading.Barrier(2, timeout=60), list[int]()

    def decode(value: int) -> npt.NDArray[Any]:
        decoded.append(value)
        both.wait()  # until the other one is being decoded, too
        return tile(value)

    with ThreadPoolExecutor(6) as pool:
        values = list(pool.map(lambda it: cache.get(it, lambda: decode(it))[0, 0], [1, 2, 1, 2, 1, 2]))
    assert values == [1, 2, 1, 2, 1, 2]
    assert sorted(decoded) == [1, 2]


def test_oldest_tiles_are_forgotten() -> None:
    cache, decoded = TileCache(250), list[int]()

    def decode(value: int) -> npt.NDArray[Any]:
        decoded.append(value)
        return tile(value)

    def get(value: int, least: int = 1) -> None:
        assert (cache.get(value, lambda: decode(value), least=least) == value).all()

    for value in (1, 2, 1, 3, 1, 2):  # 3 replaces 2
        get(value)
    assert decoded == [1, 2, 3, 2]
    for value in (4, 5, 6, 4):
        get(value, least=3)
    assert decoded == [1, 2, 3, 2, 4, 5, 6]


def test_tile_that_cannot_be_decoded_is_tried_again() -> None:
    cache, waiting = TileCache(1000), threading.Event()

    def broken() -> npt.NDArray[Any]:
        waiting.wait(60)
        raise ValueError("damaged")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(cache.get, 1, broken) for _ in range(2)]
        waiting.set()
        for future in futures:
            with pytest.raises(ValueError, match="damaged"):
                future.result(60)
    assert (cache.get(1, lambda: tile(1)) == 1).all()


@pytest.mark.parametrize("compression", ["zlib", "jpeg", "zstd", None])
def test_threads_read_the_same_pixels(tmp_path: Path, compression: str | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    for kind, options in (("tiles", {"tile": (64, 64)}), ("strips", {"rowsperstrip": 20})):
        file = tmp_path / f"{kind}.tif"
        tifffile.imwrite(file, pixels, photometric="rgb", compression=compression, **options)
        expected = tifffile.imread(file)
        with TiffImage(file) as image, ThreadPoolExecutor(4) as pool:
            places = [(x, y) for y in range(0, 250, 25) for x in range(0, 350, 25)]
            for (x, y), part in zip(
                places, pool.map(lambda it: image.rgb(0, it[0], it[1], 50, 50), places), strict=True
            ):
                np.testing.assert_array_equal(part, expected[y : y + 50, x : x + 50])
