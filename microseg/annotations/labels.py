"""Labels of an image, read by region: class indices, and the number of the object at each pixel."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from microseg.annotations.classes import IGNORE, REGION, LabelClasses
from microseg.annotations.outlines import Outlines
from microseg.annotations.rasterize import Box, draw_polygons
from microseg.errors import ImageReadError

__all__ = ["ArrayLabels", "LabelRegion", "Labels", "OutlineLabels"]


class LabelRegion(NamedTuple):
    """Labels of a part of an image.

    Attributes:
        classes: Class index of each pixel; 255 where nothing is known.
        instances: Number of the object at each pixel, from 1, the same number in every region; 0 where there is none.
            None where the objects are not known.
    """

    classes: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32] | None


class Labels(ABC):
    """Labels of an image or a slide. Nothing is drawn before it is read.

    Attributes:
        width: Of the image, in pixels of its finest level.
        height: Of the image, in pixels of its finest level.
        notes: What of the file is not used, or was changed, such as ``points not used: 3``.
    """

    def __init__(self, width: int, height: int, notes: tuple[str, ...] = ()) -> None:
        self.width, self.height, self.notes = width, height, notes

    @abstractmethod
    def read(
        self, x: float = 0, y: float = 0, width: float | None = None, height: float | None = None, scale: float = 1.0
    ) -> LabelRegion:
        """Read the labels of a region.

        Args:
            x: Left edge of the region, in pixels of the finest level.
            y: Upper edge of the region.
            width: Of the region, in pixels of the finest level; up to the right edge of the image where None.
            height: Of the region; up to the lower edge of the image where None.
            scale: Pixels of the result along one pixel of the finest level, such as 0.25 for a level of downsample 4.

        Shape:
            (round(height · scale), round(width · scale))
        """

    @abstractmethod
    def known_boxes(self) -> list[tuple[int, int, int, int]]:
        """Bounding boxes of the annotated regions: left, upper, right and lower edge, in pixels of the finest level."""

    def _box(
        self, x: float, y: float, width: float | None, height: float | None, scale: float
    ) -> tuple[Box, tuple[int, int]]:
        """Edges of a region, and its height and width in pixels of the result."""
        width = self.width - x if width is None else width
        height = self.height - y if height is None else height
        return (x, y, x + width, y + height), (max(1, round(height * scale)), max(1, round(width * scale)))


class OutlineLabels(Labels):
    """Labels given by outlines. Only those in a region are drawn, found by a spatial index.

    Where objects overlap, the smaller one is on top, of equal ones the later one in the file; ignored areas are on top
    of all. What is in no annotated region is ignored, also objects. Inside of one, what is not outlined is background.

    Args:
        outlines: Outlines in pixels of the finest level.
        classes: What their names mean.
        width: Of the image, in pixels of its finest level.
        height: Of the image.

    Raises:
        ImageReadError: A name is unknown, there are no annotated regions, or hardly anything lies inside the image.
    """

    def __init__(self, outlines: Outlines, classes: LabelClasses, width: int, height: int) -> None:
        if not len(outlines):
            raise ImageReadError(
                f"expected outlines, got none{_skipped(outlines.skipped)}. An image without objects needs an annotated "
                f"region ({_region_names(classes)}), or a mask of zeros."
            )
        meaning = np.array(classes.indices(outlines.names))
        polygons, counts = _clip(outlines.polygons, width, height)
        regions = polygons[(meaning == REGION) & ~shapely.is_empty(polygons)]
        if not len(regions) and classes.regions is not None:
            raise ImageReadError(
                f"expected an annotated region ({_region_names(classes)}), got only objects ({len(meaning)}): it is "
                "not known whether anything outside of them was looked at. Draw the regions in which all objects are "
                "outlined, or state `regions: image` in lab.yaml if all images are annotated completely."
            )
        self._regions = regions if len(regions) else None
        objects = (meaning >= 0) & (meaning < IGNORE)
        order = np.argsort(-shapely.area(outlines.polygons), kind="stable")
        order = order[objects[order] & ~shapely.is_empty(polygons[order])]
        numbers = np.cumsum((meaning > 0) & objects)
        self._polygons, self._classes = polygons[order], meaning[order].astype(np.uint8)
        self._numbers = np.where(self._classes > 0, numbers[order], 0).astype(np.int32)
        self._ignored = polygons[meaning == IGNORE]
        self.count = int(numbers[-1])
        self._tree = shapely.STRtree(self._polygons)
        notes = (f"{what}: {count}" for what, count in ({**outlines.skipped, **counts}).items() if count)
        super().__init__(width, height, tuple(notes))

    def read(
        self, x: float = 0, y: float = 0, width: float | None = None, height: float | None = None, scale: float = 1.0
    ) -> LabelRegion:
        """Draw the outlines of a region."""
        box, shape = self._box(x, y, width, height, scale)
        found = np.sort(self._tree.query(shapely.box(*box)))
        classes, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
        draw_polygons(classes, self._polygons[found], self._classes[found], box)
        draw_polygons(instances, self._polygons[found], self._numbers[found], box)
        unknown = np.zeros(shape, np.bool_)
        if self._regions is not None:
            unknown[:] = True
            draw_polygons(unknown, self._regions, np.zeros(len(self._regions), np.bool_), box)
        draw_polygons(unknown, self._ignored, np.ones(len(self._ignored), np.bool_), box)
        classes[unknown], instances[unknown] = IGNORE, 0
        return LabelRegion(classes, instances)

    def known_boxes(self) -> list[tuple[int, int, int, int]]:
        """Bounding boxes of the annotated regions; of regions that touch, one for all."""
        if self._regions is None:
            return [(0, 0, self.width, self.height)]
        parts = shapely.get_parts(shapely.union_all(self._regions))
        bounds = shapely.bounds(parts)
        corners = np.concatenate([np.floor(bounds[:, :2]), np.ceil(bounds[:, 2:])], axis=1).astype(int).tolist()
        return [(left, top, right, bottom) for left, top, right, bottom in corners]


class ArrayLabels(Labels):
    """Labels given by arrays of the image's size; all of it is annotated but where the class is 255.

    Args:
        classes: Class index of each pixel; 255 where nothing is known.
        instances: Number of the object at each pixel; 0 where there is none. None where they are not known.
        notes: See `Labels`.

    Shape:
        (H, W)
    """

    def __init__(
        self,
        classes: npt.NDArray[np.uint8],
        instances: npt.NDArray[np.int32] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(classes.shape[1], classes.shape[0], notes)
        self._arrays = LabelRegion(classes, instances)

    def read(
        self, x: float = 0, y: float = 0, width: float | None = None, height: float | None = None, scale: float = 1.0
    ) -> LabelRegion:
        """Cut the region out; at another scale, the values at the centers of the pixels."""
        if (x, y, width, height, scale) == (0, 0, None, None, 1.0):
            return self._arrays
        (left, top, right, bottom), (rows, columns) = self._box(x, y, width, height, scale)
        down = (top + (np.arange(rows) + 0.5) * (bottom - top) / rows).astype(np.int64)
        across = (left + (np.arange(columns) + 0.5) * (right - left) / columns).astype(np.int64)
        cut = np.ix_(down, across)
        classes, instances = self._arrays
        return LabelRegion(classes[cut], None if instances is None else instances[cut])

    def known_boxes(self) -> list[tuple[int, int, int, int]]:
        """The whole image."""
        return [(0, 0, self.width, self.height)]


def _clip(
    polygons: npt.NDArray[np.object_], width: int, height: int
) -> tuple[npt.NDArray[np.object_], Mapping[str, int]]:
    """Clip outlines to the image; those outside of it become empty."""
    left, top, right, bottom = shapely.bounds(polygons).T
    margin = 1e-6
    beyond = (left < -margin) | (top < -margin) | (right > width + margin) | (bottom > height + margin)
    outside = (right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)
    if (count := int(outside.sum())) > max(1, len(polygons) // 10) or count == len(polygons):
        raise ImageReadError(
            f"expected outlines inside the image of {width} x {height} pixels, got {count} of {len(polygons)} outside "
            f"of it (they reach to {right.max():g} x {bottom.max():g}). The file is of another image or level: export "
            "the annotations of this image, in pixels of its full resolution."
        )
    if beyond.any():
        polygons = polygons.copy()
        polygons[beyond] = shapely.intersection(polygons[beyond], shapely.box(0, 0, width, height))
    clipped = int((beyond & ~outside).sum())
    return polygons, {"clipped at the image's border": clipped, "outside of the image, not used": count}


def _region_names(classes: LabelClasses) -> str:
    return ", ".join(classes.regions or ("Region*",))


def _skipped(skipped: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{what}: {count}' for what, count in skipped.items())})" if skipped else ""
