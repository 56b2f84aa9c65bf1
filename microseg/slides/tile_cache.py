"""Decoded tiles of an image that several threads read."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

import numpy.typing as npt

__all__ = ["TileCache"]

Values = npt.NDArray[Any]


class TileCache:
    """Keeps the tiles that were used last. Threads decode different ones at once, and each once while it is kept.

    Args:
        limit: Bytes of the tiles that are kept; those that are being decoded are not counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, Future[Values]] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], Values], *, least: int = 1) -> Values:
        """A tile; what decoding it raises is raised in all threads that wait for it, and it is not kept.

        Args:
            key: Which tile.
            decode: Decodes it.
            least: Number of tiles that are kept though they are larger than the limit.
        """
        with self._lock:
            known = self._tiles.get(key)
            if known is None:
                decoding = self._tiles[key] = Future()
            else:
                self._tiles.move_to_end(key)
        if known is not None:
            return known.result()
        try:
            values = decode()
        except BaseException as error:
            with self._lock:
                del self._tiles[key]
            decoding.set_exception(error)
            raise
        with self._lock:
            decoding.set_result(values)
            self._bytes += values.nbytes
            for oldest, tile in list(self._tiles.items()):
                if self._bytes <= self._limit or len(self._tiles) <= least:
                    break
                if tile.done():
                    self._bytes -= self._tiles.pop(oldest).result().nbytes
        return values
