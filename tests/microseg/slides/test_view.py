from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg.slides.readers import open_slide
from microseg.slides.slide import ArraySlide, SlideView

Picture = npt.NDArray[np.uint8]


@pytest.mark.parametrize("zoom", [0.31, 0.5, 0.93, 1.0, 1.7])
def test_a_region_is_that_of_the_whole_rescaled(picture: Picture, zoom: float) -> None:
    size = (round(900 * zoom), round(700 * zoom))
    whole = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR), int)
    view = SlideView(ArraySlide(picture, Path("a.png"), None), zoom)
    assert (view.width, view.height) == size
    for rows, columns in ((slice(0, 64), slice(0, 80)), (slice(101, 150), slice(77, 160))):
        difference = np.abs(view.read(rows, columns) - whole[rows, columns])
        assert difference.max() <= 2  # weights and sums are rounded to 8 bits, twice
        assert difference.mean() < 0.05
    end = view.read(slice(size[1] - 40, size[1]), slice(size[0] - 50, size[0]))
    assert np.abs(end - whole[-40:, -50:]).max() <= 2


def test_beyond_the_edge_it_is_mirrored(picture: Picture) -> None:
    view = SlideView(ArraySlide(picture, Path("a.png"), None))
    expected = np.pad(picture, ((0, 20), (0, 28), (0, 0)), mode="reflect")[650:720, 850:928]
    np.testing.assert_array_equal(view.read(slice(650, 720), slice(850, 928)), expected)


def test_a_level_that_is_fine_enough_is_used(
    tmp_path: Path, picture: Picture, write_pyramid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(write_pyramid(tmp_path / "slide.tif", picture)) as slide:
        read, used = slide.read, list[int]()

        def noting(level: int, *region: int) -> Picture:
            used.append(level)
            return read(level, *region)

        monkeypatch.setattr(slide, "read", noting)
        for zoom, level in ((1.5, 0), (1.0, 0), (0.6, 0), (0.5, 1), (0.26, 1), (0.25, 2), (0.1, 2)):
            view = SlideView(slide, zoom)
            part = view.read(slice(10, 40), slice(20, 60))
            assert used.pop() == level, zoom
            whole = Image.fromarray(picture).resize((view.width, view.height), Image.Resampling.BILINEAR)
            assert np.abs(part - np.asarray(whole, int)[10:40, 20:60]).max() < 14, zoom
