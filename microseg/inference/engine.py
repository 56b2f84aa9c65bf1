"""The engine: from an image to class probabilities, and to separated objects."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from microseg.config.params import InferenceSettings
from microseg.cpu import tune_allocator
from microseg.errors import SettingsError
from microseg.inference.backends.backend import create_backend
from microseg.inference.backends.windowed_pooling import default_block
from microseg.inference.batching import BatchQueue, ImageRequest
from microseg.inference.blending import SpanWeights, blend_tiles
from microseg.inference.prediction import Prediction
from microseg.inference.reduction import HostCopy, classify, not_finite
from microseg.inference.scale import check_rgb, rescale, zoom_to
from microseg.inference.tiling import TilePlan, cut_tile, plan_spans
from microseg.models.files import weights_digest
from microseg.models.network import PyramidSegmenter
from microseg.models.separation import Separation, class_mask, interior_bytes, label_objects, separate_objects
from microseg.outputs.image_summary import ConfidenceSums
from microseg.threads import results_in_order

__all__ = ["Engine", "EngineOptions"]

_DEFAULTS = InferenceSettings()

_LARGE_IMAGES = 4  # of several tiles each that are predicted at once where tiles share batches


class EngineOptions(TypedDict, total=False):
    """Options of `Engine` that functions pass on."""

    tile: int
    halo: int
    batch: int
    half: bool | None
    compiled: bool
    block: int | None
    split: tuple[str, ...]


class Engine:
    """A network prepared to segment many images.

    Args:
        network: The segmenter; it is not changed.
        device: Device to compute on.
        tile: Longest side of a tile in pixels at the model's pixel size, rounded up to the network's stride: what the
            pyramid pooling sees.
        halo: Half of the least overlap of two tiles, in pixels; see `plan_spans`.
        batch: Tiles computed at once, of smaller ones as many as have that number of pixels; on a CPU at most as many
            as PyTorch has threads.
        half: Compute in 16 bits (float16 on CUDA, bfloat16 elsewhere); None: on CUDA only. Probabilities change by
            about 0.01; processors with bfloat16 instructions take half the time.
        compiled: Compile the network with ``torch.compile`` for whole batches on CUDA. Compiling takes a minute for
            each of the first eight tile sizes; other sizes are computed without.
        optimize: Work on an optimized copy. False: compute with the network itself, which must be in evaluation mode.
        block: Longest side of what is computed at once, in pixels. Above ``tile``, the pyramid pooling still sees
            windows of ``tile`` pixels, see `WindowedPooling`, and their overlaps are computed once. None: ``tile``; on
            CUDA four windows, or as many as fit the memory.
        split: Classes whose touching objects are divided by the distance to the border of the mask; not used where the
            network has an instance head.
        shared_batches: Whether tiles of different images are computed in one batch; None: on CUDA only.

    Attributes:
        classes: Names of the classes.
        inputs: Names of the channels of images; empty for gray and RGB images.
        channels: Names of the channels of `outputs`: the classes, then the maps of the network's head.
        instances: Indices of the classes whose touching objects are separated.
        interior: Channel of the interior of objects in `outputs`; None where the network does not predict it.
        smallest_instance: Area of the smallest of these, in pixels at the model's pixel size.
        mpp: Microns per pixel at which the network works; None if unknown.
        stride: Stride of the network.
        weights_sha256: SHA-256 of the network's weights, as in its ``network.json``; None without ``optimize``.
        batch: Tiles computed at once.
        block: Longest side of what is computed at once.
        weights: Weights of spans on the device, to blend tiles with.
        device: Device to compute on.

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
        block: int | None = None,
        split: tuple[str, ...] = (),
        shared_batches: bool | None = None,
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
        self.inputs = network.config.inputs
        self.channels, self.instances = network.channels, network.config.instance_indices
        if unknown := sorted(set(split) - set(self.classes[1:])):
            raise SettingsError(
                f"Expected classes of the model ({', '.join(self.classes[1:])}) in inference.split_touching, got "
                f"{', '.join(unknown)}: correct it."
            )
        self._by_shape = bool(split) and not self.instances
        if self._by_shape:
            self.instances = tuple(sorted({self.classes.index(name) for name in split}))
        self.smallest_instance = network.config.smallest_instance
        self.batch = batch
        self._tile, self._halo, self._half = tile, halo, chosen.type == "cuda" if half is None else half
        self.block = tile
        self.plan(1, 1)  # raises an error if tile, halo and stride do not fit
        if optimize:
            self.block = max(tile, default_block(chosen, tile, halo, batch) if block is None else block)
        if chosen.type == "cpu":
            tune_allocator()
        self.device = chosen
        self.weights_sha256 = weights_digest(network) if optimize else None
        self._backend = create_backend(
            network,
            device=chosen,
            batch_size=batch,
            half=self._half,
            compiled=compiled,
            optimize=optimize,
            context=(tile, halo) if self.block > tile else None,
        )
        self.interior = self.channels.index("interior") if network.config.instances else None
        self.weights = SpanWeights(chosen)
        together = chosen.type == "cuda" if shared_batches is None else shared_batches
        self._queue = BatchQueue(self._backend, batch * self.block**2, self._half) if together else None
        at_once = _LARGE_IMAGES if together else self._backend.parallel_tiles
        self._images = ThreadPoolExecutor(at_once, thread_name_prefix="images")

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings that change the result, to be recorded with it."""
        settings = {"tile": self._tile, "halo": self._halo, "half": self._half, "model_mpp": self.mpp}
        return settings | ({"split": [self.classes[index] for index in self.instances]} if self._by_shape else {})

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
        outputs = self._outputs(self.rescaled(image, mpp), image.shape[:2]).cpu().numpy()
        if not np.isfinite(outputs.sum()):  # NaN and infinity remain in a sum
            raise not_finite(self._half)
        return np.asarray(outputs, np.float32)

    def submit(
        self, image: npt.NDArray[np.uint8], size: tuple[int, int] | None = None, *, probabilities: bool = False
    ) -> "Future[Prediction]":
        """Start to predict an image; on CUDA those of several images are computed together.

        Args:
            image: RGB, 0..255, at the model's pixel size, see `rescaled`. It must not change before the result.
            size: Height and width of the result; None for those of the image.
            probabilities: Whether the result has those of all classes.

        Shape:
            image (H, W, 3)

        Returns:
            The prediction, or `ModelError`: outputs are not finite, or the device has not enough memory.
        """
        check_rgb(image)
        shape = (int(image.shape[0]), int(image.shape[1]))
        plan = self.plan(*shape)
        if self._queue is not None and len(plan) == 1:
            request = ImageRequest(shape, size or shape, len(self.classes), self.interior, probabilities)
            return self._queue.image(cut_tile(image, next(iter(plan))), request)
        return self._images.submit(self._predict, image, size or shape, probabilities)

    def rescaled(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.uint8]:
        """An image at the model's pixel size; see `zoom`."""
        check_rgb(image)
        return rescale(image, self.zoom(mpp))

    def separation(self, mpp: float | None = None) -> Separation:
        """How the objects of an image with that pixel size are separated; see `zoom`."""
        return Separation(self.instances, 1 / self.zoom(mpp), self.smallest_instance, self._by_shape)

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
        mask = class_mask(outputs[: len(self.classes)])
        interior = None if self.interior is None else interior_bytes(outputs[self.interior])
        return separate_objects(mask, interior, self.separation(mpp)) if self.instances else label_objects(mask)

    @property
    def parallel_tiles(self) -> int:
        """Tiles, or batches of tiles, that are computed in parallel."""
        return self._backend.parallel_tiles

    def zoom(self, mpp: float | None) -> float:
        """Factor that enlarges an image with that pixel size to the model's; see `zoom_to`."""
        return zoom_to(self.mpp, mpp)

    def plan(self, height: int, width: int) -> TilePlan:
        """Tiles of an image that has the model's pixel size."""
        options = {"tile": self.block, "halo": self._halo, "multiple": self.stride}
        return TilePlan(plan_spans(height, **options), plan_spans(width, **options))

    def tile_outputs(self, tiles: Iterable[npt.NDArray[np.uint8]]) -> Iterator[torch.Tensor]:
        """Outputs of tiles of one size, in order, on the device; some are computed ahead. They may be NaN or infinity.

        Shape:
            each (h, w, 3) → (K + M, h, w)
        """
        if self._queue is not None:
            return results_in_order(self._queue.tile, tiles, 2 * self._queue.most((self.block, self.block)) - 1)
        waiting = iter(tiles)
        batches = iter(lambda: list(itertools.islice(waiting, self._backend.call_size)), [])
        computed = results_in_order(self._backend.submit, batches, 2 * self._backend.parallel_tiles)
        return itertools.chain.from_iterable(computed)

    def finish(self, copies: HostCopy, pixels: int) -> tuple[list[Any], ConfidenceSums]:
        """Wait for the copies of what `classify` made of one image or block: its maps, and its sums last.

        Raises:
            ModelError: The outputs were not finite.
        """
        *maps, sums = copies.wait()
        assert sums is not None
        highest, entropy = sums.sum(0).tolist()
        if not np.isfinite(highest + entropy):
            raise not_finite(self._half)
        return [None if each is None else each.numpy() for each in maps], ConfidenceSums(pixels, highest, entropy)

    @torch.inference_mode()
    def _predict(self, image: npt.NDArray[np.uint8], size: tuple[int, int], probabilities: bool) -> Prediction:
        outputs = self._outputs(image, size)
        reduced = classify(outputs[None], len(self.classes), self.interior)
        kept = outputs[: len(self.classes)] if probabilities else None
        del outputs
        copies = HostCopy([kept, reduced.mask, reduced.confidence, reduced.interior, reduced.sums])
        (floats, mask, confidence, interior), sums = self.finish(copies, size[0] * size[1])
        return Prediction(mask[0], confidence[0], None if interior is None else interior[0], sums, floats)

    @torch.inference_mode()
    def _outputs(self, image: npt.NDArray[np.uint8], size: tuple[int, int]) -> torch.Tensor:
        """Outputs of an image at the model's pixel size, resampled: (h, w, 3) → (K + M, H, W), on the device."""
        shape, plan = image.shape[:2], self.plan(*image.shape[:2])
        predicted = self.tile_outputs(cut_tile(image, tile) for tile in plan)
        if len(plan) == 1:
            total = next(predicted)[:, : shape[0], : shape[1]]
        else:
            total = blend_tiles(plan, predicted, (len(self.channels), *shape), self.weights)
        if size == tuple(shape):
            return total
        return functional.interpolate(total[None], size=size, mode="bilinear", antialias=True)[0]
