"""Measurements of regions that people outlined in an image, one row for each."""

import csv
from pathlib import Path

import numpy as np
import shapely

from microseg.annotations.classes import LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.geojson import GeoJson
from microseg.annotations.outlines import Outlines
from microseg.annotations.rasterize import draw_polygons
from microseg.errors import ImageReadError, SettingsError
from microseg.escaping import csv_cell
from microseg.files import file_sha256
from microseg.outputs.image_summary import count_positive
from microseg.outputs.measurements import POSITIVE
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import MaskStrip, ObjectBatch, OutputWriter, Thumbnail

__all__ = ["RegionTableWriter", "check_region_folder", "region_facts"]

_SUFFIX = ".geojson"
_PIXELS = 2**22  # of a strip that are looked at at once


def check_region_folder(folder: Path) -> None:
    """Raise an error if a folder has no outlines of regions.

    Raises:
        SettingsError: It is missing, or has no ``.geojson`` files.
    """
    if not folder.is_dir() or not any(folder.glob(f"*{_SUFFIX}")):
        raise SettingsError(
            f"Expected a folder with outlines of regions in inference.regions, <image>{_SUFFIX} for each image, found "
            f"none in {folder}: correct the path, or export the annotations from QuPath."
        )


def region_facts(folder: Path | None, image: Path) -> dict[str, str]:
    """What `ImageInfo` has of the regions of an image: their file, named as the image with or without its suffix."""
    for name in () if folder is None else (image.name, image.stem):
        file = Path(folder or "") / f"{name}{_SUFFIX}"
        if file.is_file():
            return {"regions": str(file.absolute()), "regions_sha256": file_sha256(file)}
    return {}


class RegionTableWriter(OutputWriter):
    """Writes measurements of each region as CSV, where the image has outlines of regions; named ``regions``.

    An object belongs to the regions that its center lies in, and is counted as cut, too, by each region whose border
    crosses it. Areas are counted in pixels. Regions may overlap.
    """

    suffix = ".regions.csv"
    needs_objects = True

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        regions = _read(image)
        self._names, count = regions.names, len(regions)
        step = np.array(image.step)
        self._regions = shapely.transform(regions.polygons, lambda points: points / step)  # in pixels of the mask
        shapely.prepare(self._regions)
        self._borders = shapely.boundary(self._regions)
        shapely.prepare(self._borders)
        self._pixels = np.zeros((count, 256), np.int64)  # of each class
        self._objects = np.zeros((count, len(image.classes)), np.int64)
        self._positive = np.zeros_like(self._objects)
        self._cut: list[dict[int, int]] = [{} for _ in range(count)]  # class of each object, by its label

    def add_strip(self, strip: MaskStrip) -> None:
        """Count the pixels of each class in each region."""
        height, width = strip.mask.shape
        rows = max(1, _PIXELS // width)
        for start in range(0, height, rows):
            mask = strip.mask[start : start + rows]
            top, bottom = strip.top + start, strip.top + start + len(mask)
            box = shapely.box(0, top, width, bottom)
            for number in np.flatnonzero(shapely.intersects(self._regions, box)):
                inside = np.zeros(mask.shape, np.uint8)
                bounds = (0.0, float(top), float(width), float(bottom))
                draw_polygons(inside, self._regions[[number]], np.ones(1, np.uint8), bounds)
                self._pixels[number] += np.bincount(mask[inside > 0], minlength=256)

    def add_objects(self, objects: ObjectBatch) -> None:
        """Count the objects of each class in each region."""
        columns, classes = objects.columns, self.image.classes
        x, y = (columns[f"centroid_{axis}_px"] / step for axis, step in zip("xy", self.image.step, strict=True))
        for number, (region, border) in enumerate(zip(self._regions, self._borders, strict=True)):
            inside = shapely.contains_xy(region, x, y)
            found = columns["class"][inside]
            self._objects[number] += [np.count_nonzero(found == name) for name in classes]
            if POSITIVE in columns:
                self._positive[number] += count_positive({key: it[inside] for key, it in columns.items()}, classes)
            crossed = shapely.intersects(border, objects.polygons) & ~shapely.touches(border, objects.polygons)
            labels, indices = objects.labels[crossed].tolist(), objects.indices[crossed].tolist()
            self._cut[number] |= dict(zip(labels, indices, strict=True))

    def finish(self) -> None:
        """Write the table."""
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _column_names(self.image), lineterminator="\n")
            writer.writerow({name: csv_cell(name) for name in writer.fieldnames})
            writer.writerows(self._row(number) for number in range(len(self._names)))

    def _row(self, number: int) -> dict[str, object]:
        """Measurements of a region."""
        image, pixels = self.image, self._pixels[number]
        area = float(pixels.sum() * image.step[0] * image.step[1])
        mm2 = None if image.mpp is None else area * image.mpp**2 / 1e6
        row: dict[str, object] = {"image": csv_cell(image.display_name), "region": number + 1}
        row |= {"region_name": csv_cell(self._names[number]), "area_px": area, "area_mm2": mm2}
        for index, name in enumerate(image.classes[1:], start=1):
            objects = int(self._objects[number, index])
            row[f"objects_{name}"] = objects
            row[f"cut_objects_{name}"] = sum(it == index for it in self._cut[number].values())
            row[f"objects_per_mm2_{name}"] = objects / mm2 if mm2 else None
            row[f"area_fraction_{name}"] = float(pixels[index] / pixels.sum()) if pixels.any() else None
            if image.dab_threshold is not None:
                positive = int(self._positive[number, index])
                row[f"positive_{name}"] = positive
                row[f"labelling_index_{name}"] = positive / objects if objects else None
        return row | {"model": image.provenance.model}


def _column_names(image: ImageInfo) -> list[str]:
    columns = ["objects", "cut_objects", "objects_per_mm2", "area_fraction"]
    if image.dab_threshold is not None:
        columns += ["positive", "labelling_index"]
    of_classes = [f"{column}_{name}" for name in image.classes[1:] for column in columns]
    return ["image", "region", "region_name", "area_px", "area_mm2", *of_classes, "model"]


def _read(image: ImageInfo) -> Outlines:
    """The regions of an image; those outside of it have no pixels.

    Raises:
        ImageReadError: The file cannot be read, or is that of another image.
    """
    if image.regions is None:
        return Outlines((), np.zeros(0, np.object_))
    path = Path(image.regions)
    try:
        file = AnnotationFile(path)
        about = AnnotatedImage(Path(image.source).name, image.width, image.height, image.mpp)
        if not GeoJson().can_read(file, _CLASSES):
            raise ImageReadError("expected GeoJSON, got another format. Export the regions from QuPath.")
        regions = GeoJson().read(file, about, _CLASSES)
    except ImageReadError as error:
        raise ImageReadError(f"{path}: {error}") from error
    if not len(regions):
        raise ImageReadError(f"{path}: expected outlines of regions, got none. Export the annotations from QuPath.")
    return regions


_CLASSES = LabelClasses(("background",))
