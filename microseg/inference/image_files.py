"""What happens to the files of an image around the network: it is read before, and its outputs are written after.

Nothing here needs PyTorch, so that processes which only read and write start fast; see `worker`.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.config.params import InferenceSettings
from microseg.errors import DataError, MicrosegError, SettingsError
from microseg.inference.out_of_distribution import image_ood_score
from microseg.inference.prediction import Prediction
from microseg.inference.scale import rescale, zoom_to
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.models.separation import Separation, separate_objects
from microseg.outputs.batch_summary import ImageResult, ImageTask
from microseg.outputs.files import OUTPUTS
from microseg.outputs.record import ImageInfo, Provenance, Record, read_record
from microseg.outputs.regions import check_region_folder, region_facts
from microseg.outputs.segmentation_writer import SegmentationWriter
from microseg.outputs.stains import StainOptions, image_amounts
from microseg.outputs.writers import MaskStrip, load_writers
from microseg.slides.channels import ReadOptions
from microseg.slides.identity import KnownHashes
from microseg.slides.limited import ImageFile, read_file
from microseg.slides.pixel_size import StatedMpp, agreed_mpp
from microseg.slides.slide import ArraySlide

__all__ = ["BatchOptions", "ImageFiles", "PixelSizes", "ReadImage", "SlideFile", "failed", "stated_mpp"]

_HASHES_FILE = ".image-identities"  # in the folder of the outputs

PixelSizes = float | Mapping[str, float | StatedMpp] | None
"""Microns per pixel of all images, or of some by file name; None, or a name that is missing: as the files state. Where
a file states another one, the image fails, unless `StatedMpp.overrides`."""


@dataclass(frozen=True)
class BatchOptions:
    """Options of a batch, the same for all its images.

    Attributes:
        outputs: Names of output writers.
        mpp: See `PixelSizes`.
        slide_megapixels: Images above this size are segmented as slides, strip by strip; see `segment_slide`.
        skip_glass: Do not compute tiles of a slide that show bare glass.
        keep_existing: Skip images whose outputs exist, though another model or other settings made them.
        reading: Bit depth and channels of the images, see `read_image`.
        stains: Stains that are measured in objects.
        regions: Folder of outlines of regions that are measured one by one; None for none.
        processes: Processes that read and write images beside the network; 0: threads of this process. None: threads,
            which share the cores with the network; where it computes on CUDA, a process for each core but two.

    Raises:
        SettingsError: An output or a stain is unknown, or stains are measured in images of channels.
        PluginError: An output writer cannot be imported.
    """

    outputs: Collection[str] = OUTPUTS
    mpp: PixelSizes = None
    slide_megapixels: float = InferenceSettings().slide_megapixels
    skip_glass: bool = True
    keep_existing: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    stains: StainOptions = field(default_factory=StainOptions)
    regions: Path | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        load_writers(self.outputs)
        if self.stains.names and self.reading.channels:
            raise SettingsError(
                f"Expected no stains to measure in images of channels, got {', '.join(self.stains.names)}: leave them "
                "out; the intensities of the channels are measured."
            )
        if self.regions is not None:
            check_region_folder(self.regions)


@dataclass(frozen=True)
class ReadImage:
    """An image that has to be segmented.

    Attributes:
        sha256: Hash of its file.
        mpp: Microns per pixel; None if unknown.
        pixels: RGB.
        scaled: RGB at the model's pixel size.
        ood_score: Out-of-distribution score; None if unknown.

    Shape:
        pixels (H, W, 3), scaled (h, w, 3)
    """

    sha256: str
    mpp: float | None
    pixels: npt.NDArray[np.uint8]
    scaled: npt.NDArray[np.uint8]
    ood_score: float | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class SlideFile:
    """A slide that has to be segmented; it is read meanwhile.

    Attributes:
        sha256: Hash of its file.
        mpp: Microns per pixel; None if unknown.
    """

    sha256: str
    mpp: float | None


@dataclass(frozen=True)
class ImageFiles:
    """Reads the images of a batch and writes their outputs. It can be sent to another process.

    Attributes:
        out: Folder of the outputs.
        provenance: Model, data and settings.
        options: Options of the batch.
        reference: Reference distribution of the model; None: no out-of-distribution scores.
        classes: Names of the classes.
        separation: How touching objects are separated in images at the model's scale.
        interior: Whether predictions have the interior of objects.
        model_mpp: Microns per pixel at which the network works; None if unknown.
    """

    out: Path
    provenance: Provenance
    options: BatchOptions
    reference: ReferenceDistribution | None
    classes: tuple[str, ...]
    separation: Separation
    interior: bool
    model_mpp: float | None

    @cached_property
    def _hashes(self) -> KnownHashes:
        return KnownHashes(self.out / _HASHES_FILE)

    @cached_property
    def needs_probabilities(self) -> bool:
        """Whether an output needs the probabilities of all classes."""
        return any(writer.needs_probabilities for writer in load_writers(self.options.outputs).values())

    def read(self, task: ImageTask) -> "ReadImage | SlideFile | ImageResult":
        """Read an image that has to be segmented; or return the result if nothing is left to do."""
        try:
            recorded = (self.out / f"{task.name}.json").is_file()
            file = self._read(task, pixels=not recorded)
            mpp = agreed_mpp(task.path, file.mpp, stated_mpp(task.path, self.options.mpp))
            sha256 = self._hashes.sha256(task.path)
            if recorded and (record := self._existing(task, sha256, mpp)):
                return ImageResult(task, record, skipped=True)
            if file.slide:
                return SlideFile(sha256, mpp)
            if file.pixels is None:
                file = self._read(task, pixels=True)
                assert file.pixels is not None
            zoom = zoom_to(self.model_mpp, mpp)
            score = image_ood_score(self.reference, file.pixels, zoom)
            return ReadImage(sha256, mpp, file.pixels, rescale(file.pixels, zoom), score)
        except Exception as error:
            return failed(task, error)

    def write(self, task: ImageTask, image: ReadImage, prediction: Prediction, seconds: float | None) -> ImageResult:
        """Write the outputs of an image. One that cannot be measured fails alone.

        Raises:
            OSError: The folder cannot be written to, so the outputs of later images could not be kept either.
        """
        try:
            stains = self.options.stains.facts(lambda: image.pixels)
        except MicrosegError as error:
            return failed(task, error)
        info = ImageInfo(
            name=task.name,
            source=str(task.path.absolute()),
            source_sha256=image.sha256,
            width=image.size[1],
            height=image.size[0],
            mpp=image.mpp,
            classes=self.classes,
            provenance=self.provenance,
            instances=tuple(self.classes[index] for index in self.separation.classes),
            **stains,
            **region_facts(self.options.regions, task.path),
        )
        slide = ArraySlide(image.pixels, task.path, image.mpp)
        try:
            instances = None
            if self.separation.classes:
                separation = replace(self.separation, scale=1 / zoom_to(self.model_mpp, image.mpp))
                instances = separate_objects(prediction.mask, prediction.interior, separation)
            strip = MaskStrip(
                0,
                prediction.mask,
                prediction.confidence,
                prediction.probabilities,
                instances=instances,
                image=image.pixels if image_amounts(info) is not None else None,
            )
            with SegmentationWriter(self.out, info, self.options.outputs, slide.thumbnail, slide=False) as writer:
                writer.add(strip)
                summary = {} if image.ood_score is None else {"ood_score": image.ood_score}
                return ImageResult(task, writer.finish(prediction.sums, seconds=seconds, summary=summary))
        except OSError:
            raise
        except Exception as error:
            return failed(task, error)

    def save_hashes(self) -> None:
        """Keep the hashes of the files."""
        self._hashes.save()

    def _read(self, task: ImageTask, *, pixels: bool) -> ImageFile:
        megapixels, reading = self.options.slide_megapixels, self.options.reading
        return read_file(task.path, megapixels=megapixels, options=reading, pixels=pixels)

    def _existing(self, task: ImageTask, sha256: str, mpp: float | None) -> Record | None:
        """The record of the same segmentation, if all its files exist."""
        with suppress(DataError):
            record = read_record(self.out / f"{task.name}.json")
            same = (record.source_sha256, record.mpp) == (sha256, mpp)
            kept = self.options.keep_existing
            same = same and (kept or _key(record.provenance) == _key(self.provenance))
            same = same and (kept or self.options.stains.same(record))
            regions = region_facts(self.options.regions, task.path)
            same = same and record.regions_sha256 == regions.get("regions_sha256")
            complete = all((self.out / file).is_file() for file in record.outputs.values())
            if same and complete and set(self.options.outputs) <= record.outputs.keys():
                return record
        return None


def stated_mpp(path: Path, given: PixelSizes) -> StatedMpp | None:
    """What is stated about the pixel size of an image beside its file."""
    stated = given.get(path.name) if isinstance(given, Mapping) else given
    return StatedMpp(float(stated), "mpp") if isinstance(stated, float | int) else stated


def failed(task: ImageTask, error: Exception) -> ImageResult:
    """The result of an image that cannot be read, segmented or measured."""
    reason = " ".join(str(error).split()) or repr(error)
    return ImageResult(task, reason=reason if isinstance(error, MicrosegError) else f"{type(error).__name__}: {reason}")


def _key(provenance: Provenance) -> tuple[str, str | None, str]:
    """What has to be equal for two segmentations of an image to be the same."""
    return provenance.model, provenance.weights_sha256, json.dumps(provenance.inference, sort_keys=True)
