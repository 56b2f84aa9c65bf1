"""Objects of masks, for the tests of outputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.outputs.objects import ObjectFinder
from microseg.outputs.record import ImageInfo, Provenance
from microseg.outputs.writers import MaskStrip, ObjectBatch

__all__ = ["CLASSES", "find", "image_info"]

CLASSES = ("background", "gland", "stroma")


def image_info(mask: npt.NDArray[np.uint8], **changes: object) -> ImageInfo:
    """The image of a mask, a.png."""
    step: tuple[float, float] = changes.get("step", (1.0, 1.0))  # type: ignore[assignment]
    values: dict[str, object] = {
        "name": "a",
        "source": "a.png",
        "source_sha256": None,
        "width": round(mask.shape[1] * step[0]),
        "height": round(mask.shape[0] * step[1]),
        "mpp": None,
        "classes": CLASSES,
        "provenance": Provenance(model="m"),
    }
    return ImageInfo(**(values | changes))  # type: ignore[arg-type]


def find(
    mask: npt.NDArray[np.uint8],
    cuts: Sequence[int] = (),
    confidence: npt.NDArray[np.float32] | npt.NDArray[np.uint8] | None = None,
    folder: Path | None = None,
    piece: int | None = None,
    **changes: object,
) -> ObjectBatch:
    """All objects of a mask that is given in strips; ``changes`` are facts of the image."""
    with ObjectFinder(mask.shape[1], folder, piece=piece) as finder:
        for start, stop in zip((0, *cuts), (*cuts, len(mask)), strict=True):
            if stop > start:
                strip = None if confidence is None else confidence[start:stop]
                finder.add(MaskStrip(start, mask[start:stop], strip))
        finder.finish()
        return ObjectBatch.join(list(finder.batches(image_info(mask, **changes))))


def two_rectangles() -> npt.NDArray[np.uint8]:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:6, 3:9] = 1  # 4 rows, 6 columns
    mask[7:9, 12:14] = 2
    return mask
