"""The engine: from an image to class probabilities, and to separated objects."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from microseg.config.params import InferenceSettings
from microseg.cpu import tune_allocator
from microseg.errors import DataError, ModelError, SettingsError
from microseg.inference.backends.backend import create_backend
from microseg.inference.tiling import TilePlan, cut_tile, plan_spans
from microseg.models.files import weights_digest
from microseg.models.network import PyramidSegmenter
from microseg.models.separation import Separation, interior_bytes, label_objects, separate_objects
from microseg.slides.pixel_size import model_zoom

__all__ = ["Engine", "EngineOptions"]

_DEFAULTS = InferenceSettings()

_SAME_SCALE = 0.05  # relative difference of pixel sizes that counts as equal
_LARGEST_ZOOM = 16


class EngineOptions(TypedDict, total=False):
    """Options of `Engine` that functions pass on."""

    tile: int
    halo: int
    batch: int
    half: bool | None
    compiled: bool


class Engine:
    """A network prepared to segment many images.

    Args:
        network: The segmenter; it is not changed.
        device: Device to compute on.
        tile: Longest side of a tile in pixels at the model's pixel size, rounded up to the network's stride.
        halo: Half of the least overlap of two tiles, in pixels; see `plan_spans`.
        batch: Tiles computed at once; on a CPU at most as many as PyTorch has threads.
        half: Compute in 16 bits (float16 on CUDA, bfloat16 elsewhere); None: on CUDA only. Probabilities change by
            about 0.01; processors with bfloat16 instructions take half the time.
        compiled: Compile the network with ``torch.compile`` for whole batches on CUDA. Compiling takes a minute for
            each of the first eight tile sizes; other sizes are computed without.
        optimize: Work on an optimized copy. False: compute with the network itself, which must be in evaluation mode.

    Attributes:
        classes: Names of the classes.
        channels: Names of the channels of `outputs`: the classes, then the maps of the network's head.
        instances: Indices of the classes whose touching objects are separated.
        mpp: Microns per pixel at which the network works; None if unknown.
        stride: Stride of the network.
        weights_sha256: SHA-256 of the network's weights, as in its ``network.json``; None without ``optimize``.
        batch: Tiles computed at once.

    Raises:
        SettingsError: The tile is too small for its halo, a number is not positive, or ``compiled`` is set for another
            device than CUDA.
    """

    def __init__(
        self,
        network: PyramidSegmenter,
        *,
        device: str | torch.device = "cpu",
        tile: int = _DEFAULTS.tile_size,
        halo: int = _DEFAULTS.halo,
        batch: int = _DEFAULTS.batch_size,
        half: bool | None = None,
        compiled: bool = False,
        optimize: bool = True,
    ) -> None:
        chosen = torch.device(device)
        if batch < 1:
            raise SettingsError(f"Expected a batch of at least one tile, got {batch}: increase inference.batch_size.")
        if compiled and chosen.type != "cuda":
            raise SettingsError(
                f"Expected device cuda for inference.compile, got {chosen.type}: set inference.compile to false, or "
                "device to cuda."
            )
        self.classes, self.mpp, self.stride = network.config.classes, network.config.mpp, network.stride
        self.channels, self.instances = network.channels, network.config.instance_indices
        self._smallest_instance = network.config.smallest_instance
        self.batch = batch
        self._tile, self._halo, self._half = tile, halo, chosen.type == "cuda" if half is None else half
        self.plan(1, 1)  # raises an error if tile, halo and stride do not fit
        tune_allocator()
        self.weights_sha256 = weights_digest(network) if optimize else None
        self._backend = create_backend(
            network, device=chosen, batch_size=batch, half=self._half, compiled=compiled, optimize=optimize
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings that change the result, to be recorded with it."""
        return {"tile": self._tile, "halo": self._halo, "half": self._half, "model_mpp": self.mpp}

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        """Class probabilities of every pixel of an image.

        Args:
            image: RGB, 0..255.
            mpp: Microns per pixel of the image. If they differ by more than 5 % from those of the model, the image is
                rescaled, and the result resampled to the image's pixels.

        Shape:
            (H, W, 3) → (K, H, W)

        Returns:
            Probabilities; their sum over the classes is one.

        Raises:
            DataError: The image is not uint8 RGB, or its pixel size differs from the model's by a factor above 16.
        """
        return self.outputs(image, mpp)[: len(self.classes)]

    def outputs(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        """Class probabilities of every pixel of an image, and after them the maps of the head, in 0..1.

        The arguments are those of `probabilities`, which this adds the maps to.

        Shape:
            (H, W, 3) → (K + M, H, W)
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"Expected an RGB image, uint8 (H, W, 3), got {image.dtype} {image.shape}: read it with read_image."
            )
        zoom = self.zoom(mpp)
        if zoom == 1:
            return self._predict_tiles(image)
        height, width = image.shape[:2]
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        rescaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))  # as in training
        small = torch.from_numpy(self._predict_tiles(rescaled))[None]  # (1, K + M, h, w)
        full = functional.interpolate(small, size=(height, width), mode="bilinear", antialias=True)  # (1, K + M, H, W)
        return np.asarray(full[0].numpy(), np.float32)

    def separation(self, mpp: float | None = None) -> Separation:
        """How the objects of an image with that pixel size are separated; see `zoom`."""
        return Separation(self.instances, 1 / self.zoom(mpp), self._smallest_instance)

    def label_objects(self, outputs: npt.NDArray[np.float32], mpp: float | None = None) -> npt.NDArray[np.int32]:
        """Number the objects of an image; touching ones are separated where the network predicts instances.

        Args:
            outputs: From `outputs`.
            mpp: Microns per pixel of the image.

        Shape:
            (K + M, H, W) → (H, W)

        Returns:
            See `separate_objects`.
        """
        mask = outputs[: len(self.classes)].argmax(axis=0).astype(np.uint8)
        if not self.instances:
            return label_objects(mask)
        interior = interior_bytes(outputs[self.channels.index("interior")])
        return separate_objects(mask, interior, self.separation(mpp))

    @property
    def parallel_tiles(self) -> int:
        """Tiles, or batches of tiles, that are computed in parallel."""
        return self._backend.parallel_tiles

    def zoom(self, mpp: float | None) -> float:
        """Factor that enlarges an image to the model's pixel size.

        Args:
            mpp: Microns per pixel of the image; None if unknown.

        Returns:
            1 if either pixel size is unknown, or they differ by no more than 5 %.

        Raises:
            DataError: They differ by a factor above 16, or that of the image is not positive.
        """
        if mpp is not None and not mpp > 0:
            raise DataError(f"Expected a positive number of microns per pixel, got {mpp}: leave it out if unknown.")
        zoom = model_zoom(mpp, self.mpp)
        if not 1 / _LARGEST_ZOOM <= zoom <= _LARGEST_ZOOM:
            raise DataError(
                f"Expected an image of about {self.mpp} microns per pixel, as the model, got {mpp}, which differs by "
                f"more than a factor of {_LARGEST_ZOOM}: give the image's true pixel size, or choose another model."
            )
        return zoom if abs(zoom - 1) > _SAME_SCALE else 1.0

    def plan(self, height: int, width: int) -> TilePlan:
        """Tiles of an image that has the model's pixel size."""
        options = {"tile": self._tile, "halo": self._halo, "multiple": self.stride}
        return TilePlan(plan_spans(height, **options), plan_spans(width, **options))

    def predictions(self, tiles: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.float32]]:
        """Outputs of tiles of one size, in order; some are computed ahead.

        Shape:
            each (h, w, 3) → (K + M, h, w)

        Raises:
            ModelError: They are not finite; their largest value would be the background, silently.
        """
        waiting = iter(tiles)
        computing: deque[Future[npt.NDArray[np.float32]]] = deque()
        while batch := list(itertools.islice(waiting, self._backend.call_size)):
            computing.append(self._backend.submit(np.stack(batch)))
            if len(computing) > 2 * self._backend.parallel_tiles:
                yield from self._finite(computing.popleft())
        for future in computing:
            yield from self._finite(future)

    def _finite(self, future: "Future[npt.NDArray[np.float32]]") -> npt.NDArray[np.float32]:
        predicted = future.result()  # (B, K, h, w)
        if not np.isfinite(predicted.sum()):  # NaN and infinity remain in a sum
            precision = "Set inference to 32 bits (half=False), or use" if self._half else "Use"
            raise ModelError(
                "Expected finite probabilities from the network, got NaN or infinity: its weights or its arithmetic "
                f"fail on this image. {precision} another version of the model."
            )
        return predicted

    def _predict_tiles(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        plan = self.plan(*image.shape[:2])
        predicted = self.predictions(cut_tile(image, tile) for tile in plan)
        total = np.zeros((len(self.channels), *image.shape[:2]), np.float32)  # (K + M, H, W)
        for tile, part in zip(plan, predicted, strict=True):
            kept = part[:, tile.rows.inner_of_tile, tile.columns.inner_of_tile]  # (K + M, h', w')
            total[:, tile.rows.inner, tile.columns.inner] += kept * tile.weights
        return total
