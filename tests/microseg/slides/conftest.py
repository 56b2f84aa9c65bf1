from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

Pixels = npt.NDArray[Any]


@pytest.fixture(scope="session")
def picture() -> npt.NDArray[np.uint8]:
    """Smooth, so that its levels look alike, and the same nowhere: 700 rows, 900 columns."""
    y, x = np.mgrid[:700, :900].astype(np.float32)
    channels = (90 + 80 * np.sin(x / 31 + y / 47), 120 + 60 * np.cos(x / 57 - y / 23), x / 900 * 100 + y / 700 * 100)
    return np.stack(channels, axis=2).round().astype(np.uint8)


@pytest.fixture(scope="session")
def write_pyramid() -> Callable[..., Path]:
    """Writes a tiled TIFF of three levels: as reduced pages, or as OME-TIFF with sub-images."""

    def write(path: Path, pixels: Pixels, *, ome: bool = False, mpp: float | None = 0.5, **options: Any) -> Path:
        options = {"tile": (128, 128), "photometric": "rgb"} | options
        sizes = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
        with tifffile.TiffWriter(path, ome=ome) as tiff:
            for step in (1, 2, 4):
                if mpp is not None and not ome:
                    options |= {"resolution": (1e4 / mpp / step, 1e4 / mpp / step), "resolutionunit": "CENTIMETER"}
                if ome and step == 1:
                    tiff.write(pixels, subifds=2, metadata={"axes": "YXS", **sizes}, **options)
                else:
                    metadata: Any = {} if ome else None
                    tiff.write(pixels[::step, ::step], subfiletype=int(step > 1), metadata=metadata, **options)
        return path

    return write
