import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import ValidationError

from microseg.evaluation.label_free import TargetImage
from microseg.report.pictures import Picture, draw_pictures, pictures_from_json, pictures_to_json, select_targets
from microseg.slides.images import write_png


class Threshold:
    """Replaces an engine: a pixel brighter than a value is foreground, with a probability of 0.9."""

    def __init__(self, value: int) -> None:
        self.value = value

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        bright = np.where(image[..., 0] > self.value, 0.9, 0.1).astype(np.float32)
        return np.stack([1 - bright, bright])


class Unsure:
    """Replaces an engine: an image is as uncertain as its first pixel says."""

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        bright = np.full(image.shape[:2], 0.5 + 0.5 * image[0, 0, 0] / 255, np.float32)
        return np.stack([1 - bright, bright])


def decoded(uri: str) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def targets(folder: Path, images: dict[str, npt.NDArray[np.uint8]], mpp: float | None = 0.5) -> list[TargetImage]:
    for name, image in images.items():
        write_png(folder / f"{name}.png", image)
    return [TargetImage(name, folder / f"{name}.png", mpp) for name in images]


def test_picture_holds_the_own_pixels_and_both_masks(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 20:], image[:, 40:] = 100, 200
    [found] = draw_pictures(Threshold(150), Threshold(50), targets(tmp_path, {"a": image}))  # type: ignore[arg-type]
    assert (found.left, found.top, found.width, found.height, found.full_width) == (0, 0, 60, 40, 60)
    assert (found.name, found.mpp, found.changed) == ("a", 0.5, pytest.approx(1 / 3))
    assert np.array_equal(decoded(found.candidate), image[..., 0] > 150)
    assert np.array_equal(decoded(found.production or ""), image[..., 0] > 50)
    assert np.abs(decoded(found.image).astype(int) - image).mean() < 3
    assert pictures_from_json(pictures_to_json([found])) == [found]


def test_picture_of_a_large_image_is_the_part_where_the_models_differ(tmp_path: Path) -> None:
    image = np.zeros((900, 2000, 3), np.uint8)
    image[850:880, 1500:1530] = 100
    [found] = draw_pictures(Threshold(150), Threshold(50), targets(tmp_path, {"a": image}))  # type: ignore[arg-type]
    assert (found.width, found.height, found.full_width, found.full_height) == (768, 768, 2000, 900)
    assert found.left <= 1500
    assert found.left + 768 >= 1530
    assert found.top <= 850
    assert found.top + 768 >= 880
    assert decoded(found.production or "").sum() == 900
    assert decoded(found.candidate).sum() == 0


def test_pictures_without_production_and_most_uncertain_first(tmp_path: Path) -> None:
    images = {name: np.full((8, 8, 3), value, np.uint8) for name, value in (("sure", 240), ("unsure", 10), ("b", 128))}
    found = draw_pictures(Unsure(), None, targets(tmp_path, images, None))  # type: ignore[arg-type]
    assert [it.name for it in found] == ["unsure", "b", "sure"]
    assert found[0].uncertainty > 0.9
    assert {(it.production, it.changed, it.mpp) for it in found} == {(None, None, None)}
    assert draw_pictures(Unsure(), None, []) == []  # type: ignore[arg-type]


def test_pictures_fit_into_the_size_that_is_given(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    images = {str(n): noise.integers(0, 255, (128, 128, 3), np.uint8) for n in range(4)}
    given = targets(tmp_path, images)
    full = draw_pictures(Threshold(255), None, given)  # type: ignore[arg-type]
    small = draw_pictures(Threshold(255), None, given, total_bytes=30_000)  # type: ignore[arg-type]
    tiny = draw_pictures(Threshold(255), None, given, total_bytes=15_000)  # type: ignore[arg-type]
    assert len(pictures_to_json(full)) > 50_000
    assert len(small) == 4  # of a lower quality
    assert len(pictures_to_json(small)) < 42_000
    assert 0 < len(tiny) < 4


def test_selected_are_the_most_uncertain_and_some_of_the_others() -> None:
    given = [TargetImage(str(n), Path(f"{n}.png"), None) for n in range(100)]
    uncertainty = {str(n): n / 100 for n in range(100)}
    found = [int(it.name) for it in select_targets(given, uncertainty, 8)]
    assert found == [99, 98, 97, 96, 95, 94, 93, 0]
    assert [it.name for it in select_targets(given[:3], uncertainty, 8)] == ["2", "1", "0"]
    assert len(select_targets(given, {}, 8)) == 8
    assert select_targets([], {}, 8) == ()


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,A"']
)
def test_pictures_of_another_server_must_be_pictures(address: str) -> None:
    values = {"left": 0, "top": 0, "width": 1, "height": 1, "full_width": 1, "full_height": 1, "mpp": None}
    with pytest.raises(ValidationError):
        Picture(name="a", image=address, candidate=address, production=None, uncertainty=0, changed=None, **values)
