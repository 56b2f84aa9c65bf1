"""Measurements of objects, as a table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from microseg.escaping import csv_cell
from microseg.outputs.diameters import feret_diameters
from microseg.outputs.object_sums import SUMS, ObjectSums
from microseg.outputs.pixel_amounts import PixelAmounts
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import ObjectBatch, OutputWriter, Thumbnail

__all__ = [
    "OBJECT_COLUMNS",
    "POSITIVE",
    "ObjectTableWriter",
    "tabulate",
]

OBJECT_COLUMNS = (
    "image",
    "label",
    "class",
    "area_px",
    "area_um2",
    "perimeter_px",
    "perimeter_um",
    "centroid_x_px",
    "centroid_y_px",
    "equivalent_diameter_px",
    "equivalent_diameter_um",
    "eccentricity",
    "solidity",
    "mean_probability",
    "circularity",
    "max_diameter_px",
    "max_diameter_um",
    "min_diameter_px",
    "min_diameter_um",
    "centroid_x_um",
    "centroid_y_um",
    "at_border",
    "model",
)
"""Measurements of each object; those of pixel amounts follow them, see `PixelAmounts.columns`."""
POSITIVE = "dab_positive"
"""Column after those of stains, where DAB is measured."""
_AREA, _X, _Y, _XX, _YY, _XY, _PERIMETER, _CONFIDENCE = range(len(SUMS))

_ROUNDING = 1e-5  # squared pixels: for coordinates up to 100,000 the variance is not known better


class ObjectTableWriter(OutputWriter):
    """Writes the measurements of all objects as CSV, one row per object; see `tabulate`."""

    suffix = ".objects.csv"
    needs_objects = True

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        self._header = True

    def add_objects(self, objects: ObjectBatch) -> None:
        """Append rows."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            if self._header:
                file.write(",".join(objects.columns) + "\n")
            file.writelines(_csv_lines(objects.columns))
        self._header = False

    def finish(self) -> None:
        """The file is complete."""


def _csv_lines(columns: Mapping[str, npt.NDArray[Any]]) -> Iterator[str]:
    """Lines of a CSV file; numbers have four decimals, and nothing stands for those that are unknown."""
    formats: list[str] = []
    values: list[list[Any]] = []
    for name, column in columns.items():
        cells: list[Any] = column.tolist()
        kind = "%.4f" if column.dtype.kind == "f" else "%d"
        if column.dtype.kind == "O":
            shown = {text: _csv_text(csv_cell(text) if name in ("image", "class") else text) for text in set(cells)}
            kind, cells = "%s", [shown[text] for text in cells]
        elif column.dtype.kind == "f" and np.isnan(column).any():
            kind, cells = "%s", ["" if np.isnan(value) else f"{value:.4f}" for value in cells]
        formats.append(kind)
        values.append(cells)
    line = ",".join(formats) + "\n"
    return (line % row for row in zip(*values, strict=True))


def _csv_text(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n\r') else text


def tabulate(
    sums: ObjectSums,
    hulls: npt.NDArray[np.object_],
    indices: npt.NDArray[np.integer],
    image: ImageInfo,
    amounts: PixelAmounts | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Measure objects.

    Args:
        sums: From `sum_objects`, over pixels of the mask; where amounts are measured, followed by those of
            `PixelAmounts.sum_objects`.
        hulls: Convex hulls of the outlines, in pixels of the mask.
        indices: Class index of each object.
        image: The image, its pixel size and classes.
        amounts: Stains, or intensities of channels, that were measured.

    Shape:
        sums (N, len(SUMS) + those of the amounts), hulls (N,), indices (N,)

    Returns:
        Columns with one value per object, ``OBJECT_COLUMNS`` and those of the amounts, in pixels of the image and in
        microns (NaN if the pixel size is unknown): label, class, area, perimeter, centroid (from the top left corner of
        the image, as the outlines), diameter of the circle of equal area, eccentricity of the ellipse with equal second
        moments (0 = circle), solidity (area over area of the convex hull), mean probability of the object's class,
        circularity (4π · area / perimeter², at most 1), largest and smallest Feret diameter, and whether the object
        touches the border of the image, which may cut it; model and version. The amount in a ring without
        pixels is NaN. Where DAB is measured ``dab_positive``: whether its mean in the object reaches the threshold.

    Reference:
        Perimeter: Benkrid and Crookes 2000, as in scikit-image's ``perimeter``; eccentricity as in ``regionprops``.

    Deviation:
        Solidity uses the convex hull of the outline, scikit-image that of the pixels. Circularity is at most 1, as in
        ImageJ; the perimeter of a few pixels is too short.
    """
    area, step = sums[:, _AREA], image.mean_step
    center_x, center_y = sums[:, _X] / area, sums[:, _Y] / area
    xx = sums[:, _XX] / area - center_x**2
    yy = sums[:, _YY] / area - center_y**2
    xy = sums[:, _XY] / area - center_x * center_y
    scale = np.nan if image.mpp is None else image.mpp
    area_px, perimeter = area * step**2, sums[:, _PERIMETER] * step
    diameter = np.sqrt(4 * area_px / np.pi)
    largest, smallest = (length * step for length in feret_diameters(hulls))
    roundness = np.divide(4 * np.pi * area_px, perimeter**2, out=np.ones_like(area_px), where=perimeter > 0)
    columns: tuple[npt.NDArray[Any], ...] = (
        np.full(len(sums), image.display_name, np.object_),
        np.arange(1, len(sums) + 1),
        np.array(image.classes, np.object_)[indices],
        area.astype(np.int64) if step == 1 else area_px,
        area_px * scale**2,
        perimeter,
        perimeter * scale,
        (center_x + 0.5) * step,
        (center_y + 0.5) * step,
        diameter,
        diameter * scale,
        _eccentricities(xx, yy, xy),
        area / shapely.area(hulls),
        sums[:, _CONFIDENCE] / area,
        np.minimum(roundness, 1.0),
        largest,
        largest * scale,
        smallest,
        smallest * scale,
        (center_x + 0.5) * step * scale,
        (center_y + 0.5) * step * scale,
        _at_border(hulls, image.mask_shape),
        np.full(len(sums), image.provenance.model, np.object_),
    )
    values: dict[str, npt.NDArray[Any]] = dict(zip(OBJECT_COLUMNS, columns, strict=True))
    if amounts is not None:
        values |= zip(amounts.columns, _amount_values(sums, len(amounts.names)), strict=True)
    if image.dab_threshold is not None:
        values[POSITIVE] = (values["dab_od_mean"] >= image.dab_threshold).astype(np.int64)
    return values


def _amount_values(sums: ObjectSums, count: int) -> Iterator[npt.NDArray[np.float64]]:
    """Mean and standard deviation of each amount, in objects and rings; see `PixelAmounts.sum_objects`."""
    for place in range(count):
        for offset, pixels in ((1, sums[:, _AREA]), (3, sums[:, len(SUMS)])):
            total, squares = sums[:, len(SUMS) + 4 * place + offset], sums[:, len(SUMS) + 4 * place + offset + 1]
            known = pixels > 0
            mean = np.divide(total, pixels, out=np.full(len(sums), np.nan), where=known)
            square = np.divide(squares, pixels, out=np.full(len(sums), np.nan), where=known)
            yield mean
            yield np.sqrt(np.maximum(square - mean**2, 0))


def _at_border(hulls: npt.NDArray[np.object_], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """1 for objects that touch the border of the image, else 0."""
    left, top, right, bottom = shapely.bounds(hulls).reshape(-1, 4).T
    touching = (left <= 0) | (top <= 0) | (right >= shape[1]) | (bottom >= shape[0])
    return np.asarray(touching, np.int64)


def _eccentricities(
    xx: npt.NDArray[np.float64], yy: npt.NDArray[np.float64], xy: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = middle + spread, np.maximum(middle - spread, 0)
    roundness = np.divide(short, long, out=np.ones_like(long), where=long > _ROUNDING)
    return np.asarray(np.sqrt(1 - roundness), np.float64)
