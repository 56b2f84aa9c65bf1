from pathlib import Path

import numpy as np
import pytest

from microseg.errors import SettingsError
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.outputs.writers import MaskStrip, OutputWriter, load_writers, output_suffixes
from microseg.plugins import plugin_names

GROUP = "microseg.output_writers"


@pytest.mark.parametrize("wrong", [["labels", "masks"], "labels"])
def test_rejects_unknown_outputs(wrong: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"outlines.*correct inference.outputs"):
        load_writers(wrong)


def test_built_in_writers_are_entry_points() -> None:
    assert {"labels", "outlines", "overlay", "objects", "probabilities"} <= set(plugin_names(GROUP))
    writers = load_writers(plugin_names(GROUP))
    assert all(issubclass(writer, OutputWriter) for writer in writers.values())
    assert sorted(output_suffixes()) == sorted(writer.suffix for writer in writers.values())
    assert len(set(output_suffixes())) == len(writers)


class ClassCounts(OutputWriter):
    """Counts pixels and objects; what a package of somebody else may add."""

    suffix = ".counts.txt"
    needs_objects = True
    closed = 0

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.pixels = self.objects = 0

    def add_strip(self, strip: MaskStrip) -> None:
        self.pixels += int((strip.mask > 0).sum())

    def add_objects(self, objects: object) -> None:
        self.objects += len(objects.table)  # type: ignore[attr-defined]

    def finish(self) -> None:
        self.path.write_text(f"{self.image.name} {self.pixels} {self.objects}")

    def close(self) -> None:
        ClassCounts.closed += 1


def test_registered_writer_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microseg.outputs.writers.plugin_names", lambda _group: ("counts", "labels"))
    monkeypatch.setattr("microseg.outputs.writers.load_plugin", lambda _group, _name: ClassCounts)
    mask = np.zeros((8, 9), np.uint8)
    mask[1:3, 1:3] = mask[5, 5] = 1
    segmentation = Segmentation(mask, None, ("background", "gland"), None, Provenance(model="m"), "field 7")
    files = segmentation.save(tmp_path, ["counts"])
    assert files["counts"].read_text() == "field 7 5 2"
    assert ClassCounts.closed == 1

    def fail(self: ClassCounts) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(ClassCounts, "finish", fail)
    with pytest.raises(RuntimeError, match="no"):
        segmentation.save(tmp_path, ["counts"])
    assert ClassCounts.closed == 2
    assert files["counts"].read_text() == "field 7 5 2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["field 7.counts.txt", "field 7.json"]
