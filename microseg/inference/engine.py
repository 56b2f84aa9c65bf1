"""The engine: an image in, class probabilities out."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from microseg.cpu import return_memory, tune_allocator
from microseg.errors import SettingsError
from microseg.inference.backends.batch_norm_folding import fold_batch_norm
from microseg.inference.backends.fused_convolutions import fuse_convolutions
from microseg.inference.backends.tile_executor import TileExecutor
from microseg.inference.backends.tracing import TracedNetwork
from microseg.inference.options import HALO, TILE
from microseg.inference.rescaling import engine_zoom, segment_rescaled
from microseg.inference.tiling import TilePlan, cut_tile, plan_spans, plan_tiles
from microseg.models.files import weights_digest
from microseg.models.network import PyramidSegmenter

__all__ = ["Engine", "segment_image", "weights_digest"]


@dataclass(frozen=True)
class _Settings:
    device: torch.device
    tile: int
    halo: int
    batch: int
    half: bool


class Engine:
    """A network made ready to segment many images.

    It works on a copy with batch normalization folded into the convolutions; the network given is not changed. On a CPU
    tiles are computed beside one another, each by its share of the threads: threads that share one tile wait for each
    other at every layer.

    Args:
        network: the segmenter.
        device: where to compute.
        tile: longest side of a tile in pixels at the model's scale, rounded up to the network's stride.
        halo: half of the least overlap of two tiles, in pixels; see `plan_tiles`.
        batch: tiles computed at once; on a CPU at most as many as PyTorch has threads.
        half: compute in 16 bits (float16 on CUDA, bfloat16 elsewhere); None: on CUDA only. Probabilities change by
            about 0.01; processors that know bfloat16 take half the time.
        compiled: have PyTorch compile the network for whole batches on CUDA, which takes a while with the first of
            them, and again for each size of tiles until it has eight; further sizes are computed as without.

    Attributes:
        classes: names of the classes.
        mpp: microns per pixel at which the network works; None if unknown.
        stride: of the network.
        weights_sha256: of the network's weights, as in its ``network.json``.

    Raises:
        SettingsError: when the tile is too small for its halo, or a number is not positive; when it shall be compiled
            for another device than CUDA.
    """

    def __init__(
        self,
        network: PyramidSegmenter,
        *,
        device: str | torch.device = "cpu",
        tile: int = TILE,
        halo: int = HALO,
        batch: int = 4,
        half: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self._settings = _settings(network, torch.device(device), tile, halo, batch, half)
        if compiled and self._settings.device.type != "cuda":
            raise SettingsError(
                f"Expected device cuda for inference.compile, got {self._settings.device.type}: set inference.compile "
                "to false, or device to cuda."
            )
        self.classes, self.mpp, self.stride = network.config.classes, network.config.mpp, network.stride
        self.weights_sha256 = weights_digest(network)
        self._lanes = TileExecutor(batch if self._settings.device.type == "cpu" else 1)
        self._compute = self._ready(network, compiled)
        return_memory()  # of the copies that folding took

    @property
    def parameters(self) -> dict[str, Any]:
        """What besides the weights and the image decides the result, to be recorded with it."""
        chosen = asdict(self._settings)
        return {"tile": chosen["tile"], "halo": chosen["halo"], "half": chosen["half"], "model_mpp": self.mpp}

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        """Class probabilities of every pixel of an image.

        Args:
            image: RGB, 0..255.
            mpp: its microns per pixel. Where the model's are known too and differ by more than 5 %, the image is
                rescaled to the model's, and the result back to the image's pixels.

        Shape:
            (H, W, 3) → (K, H, W)

        Returns:
            Probabilities, which sum to one over the classes.

        Raises:
            DataError: when the image is not uint8 RGB, or the two pixel sizes are more than 16 times apart.
        """
        return segment_rescaled(image, self.zoom(mpp), self._whole)

    @property
    def batch(self) -> int:
        """Tiles computed at once."""
        return self._settings.batch

    @property
    def parallel_tiles(self) -> int:
        """Tiles computed beside one another, each by a share of the threads."""
        return self._lanes.count

    def zoom(self, mpp: float | None) -> float:
        """Factor by which an image of this pixel size is enlarged to the model's scale; 1 where one is unknown.

        Raises:
            DataError: when the two pixel sizes are more than 16 times apart.
        """
        return engine_zoom(mpp, self.mpp)

    def plan(self, height: int, width: int) -> TilePlan:
        """The tiles of an image that is already at the model's scale."""
        return plan_tiles(height, width, tile=self._settings.tile, halo=self._settings.halo, multiple=self.stride)

    def predict(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Class probabilities of a batch of tiles of one size, each by itself.

        Shape:
            (B, h, w, 3) → (B, K, h, w)
        """
        return self._compute(tiles)

    def predictions(self, tiles: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.float32]]:
        """Class probabilities of tiles of one size as they come, in order; some are computed ahead.

        Shape:
            each (h, w, 3) → (K, h, w)
        """
        waiting = iter(tiles)
        size = 1 if self._settings.device.type == "cpu" else self.batch
        computing: deque[Future[npt.NDArray[np.float32]]] = deque()
        while batch := list(itertools.islice(waiting, size)):
            computing.append(self._lanes.submit(self.predict, np.stack(batch)))
            if len(computing) > 2 * self._lanes.count:
                yield from computing.popleft().result()
        for future in computing:
            yield from future.result()

    def _ready(
        self, network: PyramidSegmenter, compiled: bool
    ) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
        """What computes a batch of tiles, (B, h, w, 3) → (B, K, h, w)."""
        example = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))  # (1, 3, h, w)
        folded = fold_batch_norm(network, example.to(_device(network)))
        folded = folded.to(device=self._settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._settings.device.type == "cpu" and not self._settings.half:
            return partial(_predict, TracedNetwork(fuse_convolutions(folded, example)), settings=self._settings)
        if not compiled:
            return partial(_predict, folded, settings=self._settings)
        fast = torch.compile(folded, dynamic=False)

        def compute(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            whole = len(tiles) == self.batch  # each number of tiles that an image has left over would be compiled too
            return _predict(fast if whole else folded, tiles, self._settings)

        return compute

    def _whole(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        plan = self.plan(*image.shape[:2])
        seen = self.predictions(cut_tile(image, tile) for tile in plan)
        return _blend(plan, seen, image.shape[0], image.shape[1])


def segment_image(
    network: PyramidSegmenter,
    image: npt.NDArray[np.uint8],
    *,
    device: str | torch.device | None = None,
    tile: int = TILE,
    halo: int = HALO,
    batch: int = 4,
    half: bool | None = None,
    mpp: float | None = None,
) -> npt.NDArray[np.float32]:
    """Class probabilities of one image by a network as it is: for a network that is still in training.

    For many images with one network `Engine` is faster.

    Args:
        network: the segmenter; it computes in evaluation mode and is left in its own.
        image: RGB, 0..255.
        device: where to compute; the network is moved there. None: where it is.
        tile: see `Engine`.
        halo: see `Engine`.
        batch: see `Engine`.
        half: see `Engine`.
        mpp: see `Engine.probabilities`.

    Shape:
        (H, W, 3) → (K, H, W)

    Returns:
        Probabilities, which sum to one over the classes.

    Raises:
        SettingsError: as `Engine`.
        DataError: as `Engine.probabilities`.
    """
    chosen = _device(network) if device is None else torch.device(device)
    settings = _settings(network, chosen, tile, halo, batch, half)
    with _evaluating(network.to(chosen)):
        zoom = engine_zoom(mpp, network.config.mpp)
        return segment_rescaled(image, zoom, lambda part: _segment_tiles(network, part, settings, network.stride))


def _segment_tiles(
    network: nn.Module, image: npt.NDArray[np.uint8], settings: _Settings, stride: int
) -> npt.NDArray[np.float32]:
    height, width = image.shape[:2]
    plan = plan_tiles(height, width, tile=settings.tile, halo=settings.halo, multiple=stride)

    def seen() -> Iterator[npt.NDArray[np.float32]]:
        tiles = iter(plan)
        while batch := tuple(itertools.islice(tiles, settings.batch)):
            yield from _predict(network, np.stack([cut_tile(image, tile) for tile in batch]), settings)

    return _blend(plan, seen(), height, width)


def _blend(plan: TilePlan, seen: Iterable[npt.NDArray[np.float32]], height: int, width: int) -> npt.NDArray[np.float32]:
    """Join what was seen in each tile, (K, h, w), to the whole, (K, height, width)."""
    total: npt.NDArray[np.float32] | None = None
    for tile, part in zip(plan, seen, strict=True):
        if total is None:
            total = np.zeros((len(part), height, width), np.float32)  # (K, H, W)
        kept = part[:, tile.rows.inner_of_tile, tile.columns.inner_of_tile]  # (K, h', w')
        total[:, tile.rows.inner, tile.columns.inner] += kept * tile.weights
    assert total is not None
    return total


@torch.inference_mode()
def _predict(
    network: Callable[[torch.Tensor], torch.Tensor], tiles: npt.NDArray[np.uint8], settings: _Settings
) -> npt.NDArray[np.float32]:
    kind = settings.device.type
    dtype = torch.float16 if kind == "cuda" else torch.bfloat16
    given = torch.from_numpy(tiles)
    given = given.pin_memory() if kind == "cuda" else given
    pixels = given.to(settings.device, non_blocking=True).permute(0, 3, 1, 2)  # (B, 3, h, w) uint8, channels last
    with torch.autocast(kind, dtype=dtype, enabled=settings.half):
        logits = network(pixels.float().div_(255))  # (B, K, h, w)
    return np.asarray(logits.float().softmax(dim=1).contiguous().cpu().numpy(), np.float32)


def _settings(
    network: PyramidSegmenter, device: torch.device, tile: int, halo: int, batch: int, half: bool | None
) -> _Settings:
    if batch < 1:
        raise SettingsError(f"Expected a batch of at least one tile, got {batch}: enlarge it.")
    plan_spans(1, tile=tile, halo=halo, multiple=network.stride)  # refuses what does not fit together
    tune_allocator()
    return _Settings(device, tile, halo, batch, device.type == "cuda" if half is None else half)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each part is as it was."""
    were_training = [part for part in network.modules() if part.training]
    network.eval()
    try:
        yield
    finally:
        for part in were_training:
            part.training = True
