import base64
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg.data.dataset import Lab
from microseg.data.images import read_image
from microseg.evaluation import lab_references
from microseg.report import comparison_panels, data_uri, draw_panel, reference_panels


class Painter:
    """In the place of an engine: the same class everywhere."""

    def __init__(self, label: int) -> None:
        self.label, self.seen = label, list[float | None]()

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        self.seen.append(mpp)
        probabilities = np.zeros((2, *image.shape[:2]), np.float32)
        probabilities[self.label] = 1
        return probabilities


def plain(colour: tuple[int, int, int], height: int = 30, width: int = 60) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


def test_pictures_stand_in_a_row() -> None:
    red, green = plain((200, 0, 0)), plain((0, 200, 0), 15, 30)
    panel = np.asarray(draw_panel([red, green], ["first", "second"]))
    assert panel.shape == (192 + 28, 2 * 384 + 8, 3)  # the longer side is 384, titles 28 above, 8 between
    assert (panel[28:, :384] == (200, 0, 0)).all()
    assert (panel[28:, 392:] == (0, 200, 0)).all()
    assert (panel[:, 384:392] == 255).all()
    for left in (0, 392):
        assert (panel[:28, left : left + 100] < 128).any()  # the title


def test_each_picture_needs_its_title() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        draw_panel([plain((0, 0, 0)), plain((0, 0, 0))], ["one"])


def test_panels_of_a_new_lab(new_lab: Lab, tmp_path: Path) -> None:
    nothing, everything = Painter(0), Painter(1)
    files = comparison_panels({"before": nothing, "after": everything}, new_lab, tmp_path / "panels", limit=2)  # type: ignore[dict-item]
    names = [Path(row.image).stem for row in new_lab.rows]
    assert [file.name for file in files] == [f"{names[0]}.panel.jpg", f"{names[5]}.panel.jpg"]
    assert nothing.seen == everything.seen == [1.0, 1.0]
    panel = np.asarray(Image.open(files[0])).astype(int)
    assert panel.shape == (384 + 28, 3 * 384 + 2 * 8, 3)
    image, before, after = (panel[28:, left : left + 384] for left in (0, 392, 784))
    shown = np.asarray(Image.fromarray(read_image(new_lab.image_path(new_lab.rows[0]))).resize((384, 384)))
    assert np.abs(image - shown).mean() < 4
    assert np.abs(before - image).mean() < 4
    assert np.abs(after - image).mean() > 4  # painted over


def test_panels_with_references(labelled_lab: Lab, tmp_path: Path) -> None:
    references = lab_references(labelled_lab, "train")
    assert len(references) == 4
    files = reference_panels({"model": Painter(0)}, references, tmp_path, limit=2)  # type: ignore[dict-item]
    assert [file.name for file in files] == [f"{references[n].name}.panel.jpg" for n in (0, 3)]
    panel = np.asarray(Image.open(files[0])).astype(int)
    image, reference, model = (panel[28:, left : left + 384] for left in (0, 392, 784))
    assert np.abs(model - image).mean() < 4
    assert np.abs(reference - image).mean() > 2 * np.abs(model - image).mean()
    assert len(reference_panels({}, references, tmp_path, limit=99)) == 4
    assert reference_panels({}, (), tmp_path) == []


@pytest.mark.parametrize(("name", "kind"), [("a.png", "png"), ("a.PNG", "png"), ("a.jpg", "jpeg")])
def test_addresses_hold_the_file(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"\x89\x00picture")
    head, content = data_uri(tmp_path / name).split(",")
    assert head == f"data:image/{kind};base64"
    assert base64.b64decode(content) == b"\x89\x00picture"
