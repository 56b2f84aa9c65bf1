"""A segmentation: what was found in one image, where that came from, and the files that keep it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd
import tifffile
from PIL import Image

from microseg.errors import DataError, SettingsError
from microseg.outputs.files import OUTPUTS, SUFFIXES, check_outputs, file_sha256, output_names, publish, staged
from microseg.outputs.measurements import measure_objects, object_classes, summarize_image
from microseg.outputs.outlines import feature_collection, label_objects, outline_objects
from microseg.outputs.overlay import draw_overlay
from microseg.outputs.palette import color_table
from microseg.outputs.record import Provenance, Record, find_record, read_record, software_versions
from microseg.slides.images import read_image

__all__ = ["Segmentation"]

_LEAST = 500  # pixels of the longer side of an overlay; beyond it drawing takes longer than segmenting


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image.

    Attributes:
        mask: (H, W) class indices.
        probabilities: (K, H, W) of the classes; None where not kept.
        classes: names of the classes, background first.
        mpp: microns per pixel of the image; None if unknown.
        provenance: what made it.
        source: path of the image.
        source_sha256: of the image's file; None: computed when saved, if the file is there.
        seconds: that the network took; None if unknown.
        step: pixels of the image along one of the mask, across and down: other than 1 for slides that were segmented at
            the model's scale.
        ood_score: distance to the nearest lab that the model knows, 1 being the limit; None where there is no telling.
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

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """Number of the object at each pixel, (H, W)."""
        return label_objects(self.mask)

    @cached_property
    def polygons(self) -> npt.NDArray[np.object_]:
        """Outline of each object, as shapely polygons."""
        return outline_objects(self.labels)

    @cached_property
    def _indices(self) -> npt.NDArray[np.uint8]:
        """Class index of each object."""
        return object_classes(self.mask, self.labels, int(self.labels.max(initial=0)))

    @cached_property
    def objects(self) -> pd.DataFrame:
        """Measurements of each object, in pixels of the image; see `measure_objects`."""
        return measure_objects(
            self.mask,
            self.classes,
            image=Path(self.source).name,
            mpp=self.mpp,
            step=self._step,
            probabilities=self.probabilities,
            labels=self.labels,
            polygons=self.polygons,
            indices=self._indices,
        )

    @cached_property
    def summary(self) -> dict[str, float]:
        """Figures of the whole image; see `summarize_image`. Where it is known, ``drift`` is one of them."""
        mpp = None if self.mpp is None else self.mpp * self._step
        found = summarize_image(
            self.mask,
            self.classes,
            mpp=mpp,
            probabilities=self.probabilities,
            labels=self.labels,
            indices=self._indices,
        )
        return found if self.ood_score is None else found | {"ood_score": self.ood_score}

    @property
    def _step(self) -> float:
        return float(np.sqrt(self.step[0] * self.step[1]))

    def outlines(self) -> dict[str, Any]:
        """Outlines and measurements of all objects as GeoJSON; see `feature_collection`."""
        columns = [column for column in self.objects.columns if column not in ("image", "label", "class")]
        figures = [dict(zip(columns, row, strict=True)) for row in self.objects[columns].itertuples(index=False)]
        return feature_collection(
            self.polygons,
            self._indices.tolist(),
            self.classes,
            measurements=figures,
            source=self.source_sha256 or self.source,
            step=self.step,
        )

    def overlay(self, image: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Picture of the outlines over the image; see `draw_overlay`.

        Args:
            image: RGB; None: read from the source.

        Raises:
            ImageReadError: when the source is needed and cannot be read.
        """
        picture = read_image(self.source) if image is None else image
        if self.step != (1.0, 1.0):
            picture = np.asarray(Image.fromarray(picture).resize(self.mask.shape[::-1]), np.uint8)
        return draw_overlay(picture, self.mask, least=_LEAST)

    def save(
        self,
        folder: Path | str,
        outputs: Collection[str] = OUTPUTS,
        image: npt.NDArray[np.uint8] | None = None,
        name: str | None = None,
    ) -> dict[str, Path]:
        """Write the segmentation, each file whole or not at all, and ``<name>.json`` last: without it nothing counts.

        Args:
            folder: made where missing.
            outputs: any of ``SUFFIXES``: label image (TIFF, with pixel size and colors), outlines (GeoJSON), overlay
                (JPEG), objects (CSV), probabilities (TIFF).
            image: the image, for the overlay; None: read from the source.
            name: how the files' names begin; None: as the source's, unless another image has taken that.

        Returns:
            The files by output, and the record under ``record``.

        Raises:
            SettingsError: an output is unknown.
            ImageReadError: the source is needed and cannot be read.
        """
        check_outputs(outputs)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(self.source)
        sha256 = self.source_sha256 or (file_sha256(source) if source.is_file() else None)
        name = output_names([source], folder)[0] if name is None else name
        writers: dict[str, Callable[[Path], object]] = {
            "labels": self._write_labels,
            "outlines": lambda path: path.write_bytes(orjson.dumps(self.outlines())),
            "overlay": lambda path: Image.fromarray(self.overlay(image)).save(path, quality=90, subsampling=0),
            "objects": lambda path: self._write_objects(path, name),
            "probabilities": self._write_probabilities,
        }
        files = {output: name + SUFFIXES[output] for output in SUFFIXES if output in outputs}
        record = self._record(name, sha256, files)
        with staged(folder, name) as staging:
            for output, file in files.items():
                writers[output](staging / file)
            return publish(staging, folder, record)

    @classmethod
    def load(cls, path: Path | str) -> "Segmentation":
        """Read a segmentation back.

        Args:
            path: its record, ``<name>.json``, or a folder with one record.

        Returns:
            The segmentation; with probabilities where they were saved.

        Raises:
            DataError: there is no record, there are several, or its label image is missing or damaged.
        """
        path = find_record(Path(path))
        record = read_record(path)
        if "labels" not in record.outputs:
            raise DataError(f"{path}: expected a label image among the outputs, got {sorted(record.outputs)}. Save it.")
        mask = _read_tiff(path.parent / record.outputs["labels"])
        expected = (round(record.height / record.step[1]), round(record.width / record.step[0]))
        if mask.shape != expected:
            raise DataError(f"{path}: expected labels of {expected[0]} x {expected[1]}, got {mask.shape}. Redo it.")
        probabilities = None
        if "probabilities" in record.outputs:
            probabilities = _read_tiff(path.parent / record.outputs["probabilities"]).astype(np.float32)
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
        )

    def _record(self, name: str, sha256: str | None, files: dict[str, str]) -> Record:
        source = Path(self.source)
        return Record(
            name=name,
            source=str(source.resolve()) if source.is_file() else self.source,
            source_sha256=sha256,
            width=round(self.mask.shape[1] * self.step[0]),
            height=round(self.mask.shape[0] * self.step[1]),
            mpp=self.mpp,
            step=self.step,
            classes=self.classes,
            provenance=self.provenance,
            outputs=files,
            summary={key: value if np.isfinite(value) else None for key, value in self.summary.items()},
            created=datetime.now(UTC),
            seconds=self.seconds,
            software=software_versions(),
        )

    def _write_objects(self, path: Path, name: str) -> None:
        source = Path(self.source)
        known_by = (
            source.name if name in (source.stem, source.name) else name
        )  # a file name that others share says little
        self.objects.assign(image=known_by).to_csv(path, index=False, float_format="%.4f")

    def _write_labels(self, path: Path) -> None:
        colors = color_table().T.astype(np.uint16) * 257  # (3, 256), 0..65535
        self._write_tiff(path, self.mask, photometric="palette", colormap=colors)

    def _write_probabilities(self, path: Path) -> None:
        if self.probabilities is None:
            raise SettingsError("Expected probabilities to save, this segmentation has none: leave that output out.")
        self._write_tiff(path, self.probabilities, photometric="minisblack")

    def _write_tiff(self, path: Path, array: npt.NDArray[Any], **options: Any) -> None:
        if self.mpp is not None:
            dots = 1e4 / self.mpp / self._step
            options |= {"resolution": (dots, dots), "resolutionunit": "CENTIMETER"}
        if max(array.shape) > 2048:
            options["tile"] = (512, 512)
        tifffile.imwrite(
            path,
            array,
            compression="zlib",
            software="microseg",
            metadata={"classes": list(self.classes)},
            **options,
        )


def _read_tiff(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(tifffile.imread(path))
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise DataError(
            f"{path}: expected a TIFF that microseg wrote, got {error}. Segment the image again."
        ) from error
