"""Random crops of images, drawn as a pure function of the step; and some of many images, evenly spaced.

A batch depends only on the seed and the number of the step. An interrupted run therefore resumes with exactly the
batches that it would have had, without saved state, and several processes share a batch without communication.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.annotations.instance_masks import read_instances
from microseg.datasets.decoded import DecodedFiles
from microseg.datasets.image_parts import OpenImage, image_shape, open_image, resample
from microseg.datasets.interior import MARGIN, interior_map
from microseg.errors import DataError
from microseg.slides.region import ImageSource

__all__ = ["CropSampler", "Crops", "Sample", "evenly_spaced", "labelled_parts", "step_generator"]

_Interior = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One image to draw crops from.

    Attributes:
        image: Path of the image, or region of a slide.
        mask: Path of its mask of class indices; None for an unlabelled image.
        zoom: Factor by which the image is enlarged before cropping: its microns per pixel over the model's.
        focus: Left, upper, right and lower edge of a region, in pixels of the image, that every crop overlaps; None
            for crops from anywhere.
        instances: Path of its numbered objects; None where there are none.
    """

    image: ImageSource
    mask: Path | None = None
    zoom: float = 1.0
    focus: tuple[int, int, int, int] | None = None
    instances: Path | None = None


class Crops(NamedTuple):
    """A batch of crops.

    Attributes:
        images: (B, 3, S, S) float32 in 0..1, or uint8 as they are drawn.
        masks: (B, S, S) int64 class indices, 255 where ignored, or uint8 as they are drawn; None if any of the images
            is unlabelled.
        interior: (B, S, S) float32, how far each pixel lies inside its object, see `interior_map`; NaN for images
            without numbered objects and where the mask is ignored, None if no image has numbered objects.
    """

    images: torch.Tensor
    masks: torch.Tensor | None
    interior: torch.Tensor | None = None

    def to_float(self) -> "Crops":
        """The same crops as a network takes them: float32 images in 0..1, int64 masks."""
        images = self.images.float().div_(255).contiguous(memory_format=torch.channels_last)
        return Crops(images, None if self.masks is None else self.masks.long(), self.interior)


class CropSampler:
    """Draws batches of square crops with random position, zoom, flip and rotation by multiples of 90 degrees.

    Every image is drawn once before any is drawn again.

    Args:
        samples: The images; batches have masks only if all of them have one.
        size: Side of a crop, in pixels at the model's scale.
        batch: Number of crops in a batch, over all processes.
        seed: Seed of the whole sequence of batches.
        zoom: Range of the random zoom, log-uniform; (1, 1) for none.
        classes: Number of classes, which masks are checked against; None for no check.
        decoded: Decoded images; samplers of one training share them. By default they are kept in memory, up to 1 GiB.

    Raises:
        DataError: There is no sample, or size, batch or zoom are not positive.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        size: int,
        batch: int,
        seed: int,
        zoom: tuple[float, float] = (1.0, 1.0),
        classes: int | None = None,
        decoded: DecodedFiles | None = None,
    ) -> None:
        if not samples:
            raise DataError("Expected at least one image to draw crops from, got none: check the dataset's split.")
        if size < 1 or batch < 1 or not 0 < zoom[0] <= zoom[1]:
            raise DataError(
                f"Expected a positive crop size, batch and zoom range, got size={size}, batch={batch}, zoom={zoom}."
            )
        self.samples = tuple(samples)
        self.size, self.batch, self.seed, self.zoom, self.classes = size, batch, seed, zoom, classes
        self.decoded = decoded or DecodedFiles()
        self.labelled = all(sample.mask is not None for sample in samples)
        self._numbered = self.labelled and any(sample.instances is not None for sample in samples)
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def draw(self, step: int, *, rank: int = 0, world: int = 1) -> Crops:
        """Draw the batch of one step, or this process's part of it, as a network takes it; see `draw_bytes`."""
        return self.draw_bytes(step, rank=rank, world=world).to_float()

    def draw_bytes(self, step: int, *, rank: int = 0, world: int = 1) -> Crops:
        """Draw the batch of one step, or this process's part of it, with images and masks as uint8.

        Args:
            step: Number of the step, from 0.
            rank: Number of this process, from 0.
            world: Number of processes; each draws every ``world``-th crop of the batch.

        Returns:
            B = batch / world crops, rounded up for the first processes.

        Raises:
            DataError: There are more processes than crops, or a mask does not have the size of its image or has an
                index that is no class.
            ImageReadError: A file cannot be read.
        """
        if world > self.batch:
            raise DataError(
                f"Expected at least one crop a process, got a batch of {self.batch} for {world} processes: enlarge it."
            )
        images, masks, interiors = [], [], []
        for index in range(step * self.batch + rank, (step + 1) * self.batch, world):
            image, mask, interior = self._crop(index)
            images.append(image)
            masks.append(mask)
            interiors.append(_known_interior(mask, interior) if self._numbered else None)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (B, 3, S, S)
        labels = torch.from_numpy(np.stack([m for m in masks if m is not None])) if self.labelled else None
        inside = torch.from_numpy(np.stack([i for i in interiors if i is not None])) if self._numbered else None
        return Crops(pixels, labels, inside)

    def unlabelled(self) -> "CropSampler":
        """Sampler of the same crops without masks."""
        samples = [replace(sample, mask=None, instances=None) for sample in self.samples]
        options = {"size": self.size, "batch": self.batch, "seed": self.seed}
        return CropSampler(samples, zoom=self.zoom, decoded=self.decoded, **options)

    def _crop(
        self, index: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]:
        epoch, position = divmod(index, len(self.samples))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.samples))
        sample = self.samples[int(self._order[1][position])]
        rng = np.random.default_rng((self.seed, 1, index))
        image, mask, interior = self._read(sample)
        zoom = sample.zoom * np.exp(rng.uniform(*np.log(self.zoom)))
        side = self.size / zoom  # of the window, in the image's own pixels
        least = int(np.ceil(side))
        own_height, own_width = image_shape(image)
        height, width = max(own_height, least), max(own_width, least)  # small images are mirrored at the border
        top = rng.uniform(0, height - side)
        left = rng.uniform(0, width - side)
        if (focus := sample.focus) is not None:
            top = _start(rng, side, height, (height - own_height) // 2, focus[1::2])
            left = _start(rng, side, width, (width - own_width) // 2, focus[0::2])
        box = (left, top, left + side, top + side)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))

        def cut(array: OpenImage, filter_: Image.Resampling) -> npt.NDArray[np.uint8]:
            turned = np.rot90(resample(array, box, (self.size, self.size), filter_, least), turns)
            return np.ascontiguousarray(turned[:, ::-1] if flip else turned)

        nearest, bilinear = Image.Resampling.NEAREST, Image.Resampling.BILINEAR
        labels = None if mask is None else cut(mask, nearest)
        if labels is not None and self.classes is not None and (most := int((labels + 1).max())) > self.classes:
            raise DataError(
                f"Expected class indices 0..{self.classes - 1}, or {IGNORE} for ignored pixels, in mask {sample.mask}, "
                f"got {most - 1}: the network needs one class for each index in the masks."
            )
        return cut(image, bilinear), labels, None if interior is None else cut(interior, bilinear)

    def _read(self, sample: Sample) -> "_Arrays":
        image = open_image(sample.image, self.decoded)
        mask, interior, masks, objects = None, None, sample.mask, sample.instances
        if masks is not None and self.labelled:
            mask = self.decoded.read(masks, "mask", lambda: read_mask(masks))
            _require_same_size(masks, mask, image)
            if objects is not None:
                margin = MARGIN / sample.zoom
                interior = self.decoded.read(
                    objects, f"interior {margin}", lambda: interior_map(read_instances(objects), margin)
                )
                _require_same_size(objects, interior, image)
        return image, mask, interior


def labelled_parts(mask: npt.NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Where the labels of an image are, if most of it is ignored.

    Shape:
        (H, W)

    Returns:
        Bounding boxes of the connected parts that are not ignored: left, upper, right and lower edge. Parts of less
        than a hundredth of the largest one are left out. None where labels cover half of the image.
    """
    known = mask != IGNORE
    if 2 * known.sum() >= known.size:
        return []
    numbers, _ = ndimage.label(known)
    areas = np.bincount(numbers.ravel())[1:]
    boxes = zip(ndimage.find_objects(numbers), areas.tolist(), strict=True)
    large = [box for box, area in boxes if 100 * area >= areas.max()]
    return [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in large]


def step_generator(seed: int, step: int, rank: int = 0, *, device: torch.device | None = None) -> torch.Generator:
    """Random generator that depends only on these numbers: one on the CPU, and an independent one for a device."""
    (state,) = np.random.SeedSequence((seed, 2 if device is None else 4, step, rank)).generate_state(1, np.uint64)
    return torch.Generator(device or "cpu").manual_seed(int(state >> np.uint64(1)))


def _start(rng: np.random.Generator, side: float, length: int, padding: int, focus: Sequence[int]) -> float:
    """Start of a crop along one axis, so that it overlaps a region: it has a random point of the region inside."""
    point = rng.uniform(focus[0], focus[1]) + padding
    return float(rng.uniform(max(0.0, point - side), min(point, length - side)))


_Arrays = tuple[OpenImage, npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]
"""An image, its mask, and the interior of its objects in 255ths."""


def _known_interior(mask: npt.NDArray[np.uint8] | None, interior: npt.NDArray[np.uint8] | None) -> _Interior:
    """The interior in 0..1, NaN where it is not known."""
    assert mask is not None
    if interior is None:
        return np.full(mask.shape, np.nan, np.float32)
    return np.where(mask == IGNORE, np.float32(np.nan), interior / np.float32(255))


def _require_same_size(file: Path, labels: npt.NDArray[np.uint8], image: OpenImage) -> None:
    if labels.shape != image_shape(image):
        raise DataError(
            f"Expected mask {file} to have the size of its image, {image_shape(image)}, got {labels.shape}: "
            "ingest the lab again, which rejects such pairs."
        )


def evenly_spaced(items: Sequence[T], limit: int) -> list[T]:
    """At most so many of the items, evenly spaced from the first to the last."""
    chosen = np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)
    return [items[index] for index in chosen]
