"""Random crops of images, drawn as a pure function of the step.

A batch depends only on the seed and the number of the step. An interrupted run therefore resumes with exactly the
batches that it would have had, without saved state, and several processes share a batch without communication.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.annotations.instance_masks import read_instances
from microseg.datasets.interior import MARGIN, interior_map
from microseg.errors import DataError
from microseg.slides.images import write_png
from microseg.slides.region import ImageSource, read_source

__all__ = ["CropSampler", "Crops", "Sample", "cut_windows", "labelled_parts", "step_generator"]

_Interior = npt.NDArray[np.float32]


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
        images: (B, 3, S, S) float32 in 0..1.
        masks: (B, S, S) int64 class indices, 255 where ignored; None if any of the images is unlabelled.
        interior: (B, S, S) float32, how far each pixel lies inside its object, see `interior_map`; NaN for images
            without numbered objects and where the mask is ignored, None if no image has numbered objects.
    """

    images: torch.Tensor
    masks: torch.Tensor | None
    interior: torch.Tensor | None = None


class CropSampler:
    """Draws batches of square crops with random position, zoom, flip and rotation by multiples of 90 degrees.

    Every image is drawn once before any is drawn again.

    Args:
        samples: The images; batches have masks only if all of them have one.
        size: Side of a crop, in pixels at the model's scale.
        batch: Number of crops in a batch, over all processes.
        seed: Seed of the whole sequence of batches.
        zoom: Range of the random zoom, log-uniform; (1, 1) for none.
        cache_bytes: Size of the cache of decoded images; the least recently used are dropped first.

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
        cache_bytes: int = 2**30,
    ) -> None:
        if not samples:
            raise DataError("Expected at least one image to draw crops from, got none: check the dataset's split.")
        if size < 1 or batch < 1 or not 0 < zoom[0] <= zoom[1]:
            raise DataError(
                f"Expected a positive crop size, batch and zoom range, got size={size}, batch={batch}, zoom={zoom}."
            )
        self.samples = tuple(samples)
        self.size, self.batch, self.seed, self.zoom = size, batch, seed, zoom
        self.labelled = all(sample.mask is not None for sample in samples)
        self._numbered = self.labelled and any(sample.instances is not None for sample in samples)
        self._cache: OrderedDict[int, _Arrays] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, cache_bytes

    def draw(self, step: int, *, rank: int = 0, world: int = 1) -> Crops:
        """Draw the batch of one step, or this process's part of it.

        Args:
            step: Number of the step, from 0.
            rank: Number of this process, from 0.
            world: Number of processes; each draws every ``world``-th crop of the batch.

        Returns:
            B = batch / world crops, rounded up for the first processes.

        Raises:
            DataError: There are more processes than crops, or a mask does not have the size of its image.
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
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (B, 3, S, S) uint8
        labels = torch.from_numpy(np.stack([m for m in masks if m is not None])).long() if self.labelled else None
        inside = torch.from_numpy(np.stack([i for i in interiors if i is not None])) if self._numbered else None
        return Crops(pixels.float().div_(255).contiguous(memory_format=torch.channels_last), labels, inside)

    def unlabelled(self) -> "CropSampler":
        """Sampler of the same crops without masks."""
        samples = [replace(sample, mask=None, instances=None) for sample in self.samples]
        options = {"size": self.size, "batch": self.batch, "seed": self.seed, "cache_bytes": self._cache_bytes}
        return CropSampler(samples, zoom=self.zoom, **options)

    def _crop(self, index: int) -> "_Arrays":
        epoch, position = divmod(index, len(self.samples))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.samples))
        sample = int(order[position])
        rng = np.random.default_rng((self.seed, 1, index))
        image, mask, interior = self._read(sample)
        zoom = self.samples[sample].zoom * np.exp(rng.uniform(*np.log(self.zoom)))
        side = self.size / zoom  # of the window, in the image's own pixels
        before = image.shape
        image = _pad_to(image, int(np.ceil(side)))
        mask = None if mask is None else _pad_to(mask, int(np.ceil(side)))
        interior = None if interior is None else _pad_to(interior, int(np.ceil(side)))
        top = rng.uniform(0, image.shape[0] - side)
        left = rng.uniform(0, image.shape[1] - side)
        if (focus := self.samples[sample].focus) is not None:
            top = _start(rng, side, image.shape[0], (image.shape[0] - before[0]) // 2, focus[1::2])
            left = _start(rng, side, image.shape[1], (image.shape[1] - before[1]) // 2, focus[0::2])
        box = (left, top, left + side, top + side)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))

        def cut(array: npt.NDArray[np.uint8], filter_: Image.Resampling) -> npt.NDArray[np.uint8]:
            window = Image.fromarray(array).resize((self.size, self.size), filter_, box)
            turned = np.rot90(np.asarray(window), turns)
            return np.ascontiguousarray(turned[:, ::-1] if flip else turned)

        nearest, bilinear = Image.Resampling.NEAREST, Image.Resampling.BILINEAR
        return (
            cut(image, bilinear),
            None if mask is None else cut(mask, nearest),
            None if interior is None else cut(interior, bilinear),
        )

    def _read(self, sample: int) -> "_Arrays":
        if sample in self._cache:
            self._cache.move_to_end(sample)
            return self._cache[sample]
        paths = self.samples[sample]
        image = read_source(paths.image)
        mask = None if paths.mask is None or not self.labelled else read_mask(paths.mask)
        objects = None if paths.instances is None or not self.labelled else read_instances(paths.instances)
        for file, labels in ((paths.mask, mask), (paths.instances, objects)):
            if labels is not None and labels.shape != image.shape[:2]:
                raise DataError(
                    f"Expected mask {file} to have the size of its image, {image.shape[:2]}, got {labels.shape}: "
                    "ingest the lab again, which rejects such pairs."
                )
        pair = image, mask, None if objects is None else interior_map(objects, MARGIN / paths.zoom)
        self._cache[sample] = pair
        self._cached_bytes += _bytes(pair)
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])
        return pair


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


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Random generator on the CPU that depends only on these numbers."""
    (state,) = np.random.SeedSequence((seed, 2, step, rank)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _start(rng: np.random.Generator, side: float, length: int, padding: int, focus: Sequence[int]) -> float:
    """Start of a crop along one axis, so that it overlaps a region: it has a random point of the region inside."""
    point = rng.uniform(focus[0], focus[1]) + padding
    return float(rng.uniform(max(0.0, point - side), min(point, length - side)))


_Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]
"""An image, its mask, and the interior of its objects in 255ths."""


def _known_interior(mask: npt.NDArray[np.uint8] | None, interior: npt.NDArray[np.uint8] | None) -> _Interior:
    """The interior in 0..1, NaN where it is not known."""
    assert mask is not None
    if interior is None:
        return np.full(mask.shape, np.nan, np.float32)
    return np.where(mask == IGNORE, np.float32(np.nan), interior / np.float32(255))


def _bytes(arrays: _Arrays) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def _pad_to(array: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    missing = [max(0, side - length) for length in array.shape[:2]]
    if not any(missing):
        return array
    width = [(m // 2, m - m // 2) for m in missing] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, width, mode="symmetric")


def cut_windows(
    samples: Sequence[Sample], folder: Path, *, side: int = 512, megapixels: float = 6.0, seed: int = 0
) -> tuple[Path, ...]:
    """Cut one window at the model's scale out of each image and write it as PNG; of many images a random subset.

    Args:
        samples: The images and the factor by which each is enlarged to the model's scale; masks are not read.
        folder: Folder of the windows; created when missing.
        side: Longest side of a window, in pixels at the model's scale.
        megapixels: Limit for all windows together; at least one window is cut.
        seed: Seed of the subset and of the positions.

    Returns:
        Files of the windows, named by their index in ``samples``.

    Raises:
        DataError: There is no image.
        ImageReadError: A file cannot be read.
    """
    if not samples:
        raise DataError("Expected at least one image to cut windows from, got none: check the dataset.")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 3))
    files: list[Path] = []
    pixels = 0
    for index in rng.permutation(len(samples)):
        window = _window(read_source(samples[index].image), samples[index].zoom, side, rng)
        pixels += window.shape[0] * window.shape[1]
        if files and pixels > 1e6 * megapixels:
            break
        files.append(folder / f"{index:06d}.png")
        write_png(files[-1], window)
    return tuple(sorted(files))


def _window(image: npt.NDArray[np.uint8], zoom: float, side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    height, width = (min(length, side / zoom) for length in image.shape[:2])  # in the image's own pixels
    top, left = rng.uniform(0, image.shape[0] - height), rng.uniform(0, image.shape[1] - width)
    if zoom == 1:
        top, left = int(top), int(left)  # the pixels as they are
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    box = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box))
