"""The segmentation of one image in memory."""

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
from PIL import Image

from microseg.errors import DataError
from microseg.outputs.files import OUTPUTS, output_names
from microseg.outputs.image_summary import ConfidenceSums, count_positive, summarize
from microseg.outputs.objects import ObjectFinder
from microseg.outputs.outlines import features
from microseg.outputs.overlay import draw_overlay
from microseg.outputs.record import ImageInfo, Provenance, find_record, read_record
from microseg.outputs.segmentation_writer import SegmentationWriter
from microseg.outputs.stains import image_amounts
from microseg.outputs.writers import MaskStrip, ObjectBatch
from microseg.parsing import parse_json
from microseg.slides.channels import ReadOptions
from microseg.slides.identity import source_sha256
from microseg.slides.limited import open_slide
from microseg.slides.slide import ArraySlide

__all__ = ["Segmentation"]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image.

    Attributes:
        mask: Class indices.
        probabilities: Probabilities of the classes; None for slides.
        classes: Names of the classes, background first.
        mpp: Microns per pixel of the image; None if unknown.
        provenance: Model, data and settings.
        source: Path of the image.
        source_sha256: SHA-256 of the image file; None: computed by `save`, if the file exists.
        seconds: Time of the network; None if unknown.
        step: Pixels of the image per pixel of the mask, in x and y; other than 1 for slides, which are segmented at
            the model's pixel size.
        ood_score: Out-of-distribution score; above 1 the image is out of distribution. None if unknown.
        tissue_fraction: Fraction of the image that is tissue, for slides; None if unknown.
        instances: Number of the object at each pixel, from 1, where touching objects are separated; None where objects
            are the connected regions of the mask.
        instance_classes: Classes whose touching objects are separated.
        stains: Stains to measure; see `KNOWN_STAINS`.
        stain_vectors: See `ImageInfo`.
        stains_estimated: See `ImageInfo`.
        stains_too_pale: See `ImageInfo`.
        dab_threshold: See `ImageInfo`.
        pixels: RGB pixels of the image, which stains are measured in; None: read from the source.

    Shape:
        mask and instances (H, W), probabilities (K, H, W), pixels (H, W, 3)
    """

    mask: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32] | None
    classes: tuple[str, ...]
    mpp: float | None
    provenance: Provenance
    source: str
    source_sha256: str | None = None
    seconds: float | None = None
    step: tuple[float, float] = (1.0, 1.0)
    ood_score: float | None = None
    tissue_fraction: float | None = None
    instances: npt.NDArray[np.int32] | None = None
    instance_classes: tuple[str, ...] = ()
    stains: tuple[str, ...] = ()
    stain_vectors: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    stains_estimated: bool = False
    stains_too_pale: bool = False
    dab_threshold: float | None = None
    pixels: npt.NDArray[np.uint8] | None = None

    @property
    def polygons(self) -> npt.NDArray[np.object_]:
        """Outline of each object in pixels of the mask, as shapely polygons."""
        return self._objects.polygons

    @property
    def objects(self) -> pd.DataFrame:
        """Measurements of each object, in pixels of the image and in microns; see `tabulate`."""
        return self._objects.table

    @cached_property
    def summary(self) -> dict[str, int | float | None]:
        """Measurements of the whole image; see `summarize`. Where it is known, ``ood_score`` is one of them."""
        pixels = np.bincount(self.mask.ravel(), minlength=256)
        counts = np.bincount(self._objects.indices, minlength=256)
        info, columns = self._info(), self._objects.columns
        positive = count_positive(columns, self.classes) if info.dab_threshold is not None else None
        measured = summarize(info, pixels, counts, self._confidence_sums(), self.tissue_fraction, positive)
        return measured | self._extra()

    def outlines(self) -> dict[str, Any]:
        """Outlines and measurements of all objects as GeoJSON; see `features`."""
        found = [parse_json(feature) for feature in features(self._objects, self._info())]
        return {"type": "FeatureCollection", "features": found}

    def overlay(self, image: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Picture of the outlines on the image; see `draw_overlay`.

        Args:
            image: RGB, 0..255; None: read from the source.

        Raises:
            ImageReadError: The source is needed and cannot be read.
        """
        height, width = self.mask.shape
        picture = Image.fromarray(self._thumbnail(image, max(height, width))).resize((width, height))
        return draw_overlay(np.asarray(picture, np.uint8), self.mask, self.instances)

    def save(
        self,
        folder: Path | str,
        outputs: Collection[str] = OUTPUTS,
        image: npt.NDArray[np.uint8] | None = None,
        name: str | None = None,
    ) -> dict[str, Path]:
        """Write output files, all or none, and ``<name>.json``, the record; see `SegmentationWriter`.

        Args:
            folder: Folder of the files; created if missing.
            outputs: Names of output writers.
            image: The image, for the overlay; None: read from the source.
            name: Stem of the files' names; None: that of the source, unless another image has it.

        Returns:
            The files by output, and the record under ``record``.

        Raises:
            SettingsError: An output is unknown, or cannot be written.
            ImageReadError: The source is needed and cannot be read.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = output_names([Path(self.source)], folder)[0] if name is None else name
        info = self._info(name)

        def thumbnail(longest: int) -> npt.NDArray[np.uint8]:
            return self._thumbnail(image, longest)

        with SegmentationWriter(folder, info, outputs, thumbnail, slide=False) as writer:
            writer.add(self._strip(image))
            record = writer.finish(
                self._confidence_sums(), seconds=self.seconds, summary=self._extra(), tissue=self.tissue_fraction
            )
        return {output: folder / file for output, file in record.outputs.items()} | {"record": folder / f"{name}.json"}

    @classmethod
    def load(cls, path: Path | str) -> "Segmentation":
        """Read a segmentation from its files.

        Args:
            path: The record, ``<name>.json``, or a folder with one record.

        Returns:
            The segmentation; with probabilities where they were saved.

        Raises:
            DataError: There is no record, there are several, or the label image is missing or damaged.
        """
        path = find_record(Path(path))
        record = read_record(path)
        if "labels" not in record.outputs:
            raise DataError(
                f"{path}: expected a label image among the outputs, got {sorted(record.outputs)}. "
                "Segment the image again with the output labels."
            )
        mask = _read_tiff(path.parent / record.outputs["labels"])
        if mask.shape != record.mask_shape:
            raise DataError(
                f"{path}: expected labels of {record.mask_shape}, got {mask.shape}. Segment the image again."
            )
        probabilities = None
        if "probabilities" in record.outputs:
            probabilities = _read_tiff(path.parent / record.outputs["probabilities"]).astype(np.float32)
        instances = None
        if record.instances:
            if "instances" not in record.outputs:
                raise DataError(
                    f"{path}: expected the numbers of the objects among the outputs, got {sorted(record.outputs)}. "
                    "Segment the image again with the outputs labels and instances."
                )
            instances = _read_tiff(path.parent / record.outputs["instances"]).astype(np.int32)
            if instances.shape != mask.shape:
                raise DataError(
                    f"{path}: expected instances of {mask.shape}, got {instances.shape}. Segment the image again."
                )
        return cls(
            mask=mask.astype(np.uint8),
            probabilities=probabilities,
            classes=record.classes,
            mpp=record.mpp,
            provenance=record.provenance,
            source=record.source,
            source_sha256=record.source_sha256,
            seconds=record.seconds,
            step=record.step,
            ood_score=record.summary.get("ood_score"),
            tissue_fraction=record.summary.get("tissue_fraction"),
            instances=instances,
            instance_classes=record.instances,
            stains=record.stains,
            stain_vectors=record.stain_vectors,
            stains_estimated=record.stains_estimated,
            stains_too_pale=record.stains_too_pale,
            dab_threshold=record.dab_threshold,
        )

    def _info(self, name: str | None = None) -> ImageInfo:
        """The image; with ``name`` as it is recorded."""
        path, sha256, source = Path(self.source), self.source_sha256, self.source
        if name is not None and path.is_file():
            sha256, source = sha256 or source_sha256(path), str(path.absolute())
        return ImageInfo(
            name=path.stem if name is None else name,
            source=source,
            source_sha256=sha256,
            width=round(self.mask.shape[1] * self.step[0]),
            height=round(self.mask.shape[0] * self.step[1]),
            mpp=self.mpp,
            step=self.step,
            classes=self.classes,
            provenance=self.provenance,
            instances=self.instance_classes,
            stains=self.stains,
            stain_vectors=dict(self.stain_vectors),
            stains_estimated=self.stains_estimated,
            stains_too_pale=self.stains_too_pale,
            dab_threshold=self.dab_threshold,
        )

    def _strip(self, image: npt.NDArray[np.uint8] | None = None) -> MaskStrip:
        confidence = None
        if self.probabilities is not None:
            classes = np.minimum(self.mask, len(self.classes) - 1)[None]  # (1, H, W); 255 is ignored
            confidence = np.take_along_axis(self.probabilities, classes, axis=0)[0]
        pixels = self._mask_pixels(image) if image_amounts(self._info()) is not None else None
        return MaskStrip(0, self.mask, confidence, self.probabilities, instances=self.instances, image=pixels)

    def _mask_pixels(self, image: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
        """The image at the size of the mask."""
        height, width = self.mask.shape
        if image is None:
            image = self.pixels if self.pixels is not None else self._thumbnail(None, max(height, width))
        if image.shape[:2] == self.mask.shape:
            return image
        return np.asarray(Image.fromarray(image).resize((width, height)), np.uint8)

    @cached_property
    def _objects(self) -> ObjectBatch:
        info = self._info()
        with ObjectFinder(self.mask.shape[1], piece=None, amounts=image_amounts(info)) as finder:
            finder.add(self._strip())
            finder.finish()
            return ObjectBatch.join(list(finder.batches(info)))

    def _confidence_sums(self) -> ConfidenceSums | None:
        if self.probabilities is None:
            return None
        sums = ConfidenceSums()
        sums.add(self.probabilities)
        return sums

    def _extra(self) -> dict[str, float | None]:
        known = {"tissue_fraction": self.tissue_fraction, "ood_score": self.ood_score}
        return {name: value for name, value in known.items() if value is not None}

    def _thumbnail(self, image: npt.NDArray[np.uint8] | None, longest: int) -> npt.NDArray[np.uint8]:
        reading = ReadOptions.from_record(self.provenance.inference)
        slide = open_slide(self.source, reading) if image is None else ArraySlide(image, Path(self.source), self.mpp)
        with closing(slide):
            return slide.thumbnail(longest)


def _read_tiff(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(tifffile.imread(path))
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise DataError(
            f"{path}: expected a TIFF that microseg wrote, got {error}. Segment the image again."
        ) from error
