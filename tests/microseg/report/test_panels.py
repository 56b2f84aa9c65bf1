import base64
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg.datasets.dataset import LabDataset
from microseg.evaluation.label_free import lab_targets
from microseg.evaluation.references import lab_references
from microseg.outputs import overlay
from microseg.report import panels
from microseg.report.panels import comparison_panels, data_uri, reference_panels
from microseg.slides.images import read_image


class Painter:
    """Replaces an engine: predicts the same class everywhere."""

    def __init__(self, label: int) -> None:
        self.label, self.seen = label, list[float | None]()

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        self.seen.append(mpp)
        probabilities = np.zeros((2, *image.shape[:2]), np.float32)
        probabilities[self.label] = 1
        return probabilities


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[npt.NDArray[np.uint8]], list[str], tuple[str, ...]]]:
    """The images, titles and legend of each panel."""
    panels_drawn: list[tuple[list[npt.NDArray[np.uint8]], list[str], tuple[str, ...]]] = []

    def draw_panel(
        images: list[npt.NDArray[np.uint8]], titles: list[str], *, classes: tuple[str, ...], height: int
    ) -> npt.NDArray[np.uint8]:
        panels_drawn.append((images, titles, classes))
        return overlay.draw_panel(images, titles, classes=classes, height=height)

    monkeypatch.setattr(panels, "draw_panel", draw_panel)
    return panels_drawn


def far(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    """Mean difference of two images, each resized to 64 px."""
    a, b = (np.asarray(Image.fromarray(image).resize((64, 64))).astype(int) for image in (first, second))
    return float(np.abs(a - b).mean())


def test_panels_of_a_target_lab(target_lab: LabDataset, tmp_path: Path, drawn: list[Any]) -> None:
    nothing, everything = Painter(0), Painter(1)
    targets, classes = lab_targets(target_lab, 2), target_lab.metadata.classes
    engines: Any = {"before": nothing, "after": everything}
    files = comparison_panels(engines, targets, classes, tmp_path / "panels")
    names = [Path(row.image).stem for row in target_lab.rows]
    assert [file.name for file in files] == ["1.panel.jpg", "2.panel.jpg"]
    assert nothing.seen == everything.seen == [1.0, 1.0]
    with Image.open(files[0]) as panel:
        assert panel.width > 3 * 290
    (image, before, after), titles, legend = drawn[0]
    assert titles == [names[0], "before", "after"]
    assert legend == classes
    assert np.array_equal(image, read_image(target_lab.image_path(target_lab.rows[0])))
    assert far(before, image) < 4
    assert far(after, image) > 4  # painted over


def test_panels_with_references(source_lab: LabDataset, tmp_path: Path, drawn: list[Any]) -> None:
    references, classes = lab_references(source_lab, "train"), source_lab.metadata.classes
    assert len(references) == 4
    files = reference_panels({"model": Painter(0)}, references, classes, tmp_path, limit=2)  # type: ignore[dict-item]
    assert [file.name for file in files] == [f"{references[n].name}.panel.jpg" for n in (0, 3)]
    (image, reference, model), titles, _ = drawn[0]
    assert titles == [references[0].name, "reference", "model"]
    assert far(reference, image) > 2 * far(model, image)
    assert len(reference_panels({}, references, classes, tmp_path, limit=99)) == 4
    assert reference_panels({}, (), classes, tmp_path) == []


@pytest.mark.parametrize(("name", "kind"), [("a.png", "png"), ("a.PNG", "png"), ("a.jpg", "jpeg")])
def test_data_uri_contains_the_file(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"\x89\x00picture")
    head, content = data_uri(tmp_path / name).split(",")
    assert head == f"data:image/{kind};base64"
    assert base64.b64decode(content) == b"\x89\x00picture"
