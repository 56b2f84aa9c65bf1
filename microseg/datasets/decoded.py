"""Decoded images and masks, of which parts are read without the rest.

A crop needs a small part of an image, but most files can only be decoded as a whole. Each is decoded once, into a plain
array: a file in a folder, which is mapped into memory. All processes of a training share these files through the
system's page cache, which gives the memory back where something else needs it. Without a folder, or where its disk is
full, the arrays are in the memory of this process, the least recently used dropped first.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

from microseg.errors import NoSpaceError
from microseg.files import atomic_write
from microseg.locks import try_lock

__all__ = ["DecodedFiles"]

_log = logging.getLogger(__name__)

_MAPPED = 10_000  # arrays that are mapped at once; the system limits their number to some ten thousands
_RESERVE = 2**30  # bytes that stay free on the disk

Pixels = npt.NDArray[np.uint8]


class DecodedFiles:
    """Decoded images and masks.

    Args:
        folder: Folder for the arrays, created when needed; None to keep them in memory.
        memory: Bytes of arrays that are kept in memory, by all processes that read batches together.
    """

    def __init__(self, folder: Path | None = None, memory: int = 2**30) -> None:
        self.folder, self.memory = folder, memory
        self._arrays: OrderedDict[tuple[Path, str], Pixels] = OrderedDict()
        self._bytes = 0

    def read(self, file: Path, kind: str, decode: Callable[[], Pixels]) -> Pixels:
        """Array of a file; reading a part of it does not read the rest.

        Args:
            file: The file.
            kind: What it is decoded to, such as ``image``; one file can have several.
            decode: Decodes it.

        Returns:
            What ``decode`` returns; read-only.
        """
        key = (file, kind)
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        array = decode() if self.folder is None else self._mapped(self.folder, file, kind, decode)
        self._arrays[key] = array
        self._bytes += self._cost(array)
        workers = get_worker_info()
        limit = self.memory // (1 if workers is None else workers.num_workers)
        while self._bytes > limit and len(self._arrays) > 1:
            self._bytes -= self._cost(self._arrays.popitem(last=False)[1])
        return array

    def _mapped(self, folder: Path, file: Path, kind: str, decode: Callable[[], Pixels]) -> Pixels:
        if not file.is_file():
            return decode()  # which says what is wrong
        stat = file.stat()
        state = f"{file.absolute()}\n{stat.st_size} {stat.st_mtime_ns}\n{kind}"
        path = folder / f"{sha256(state.encode()).hexdigest()[:32]}.npy"
        if not path.is_file():
            with try_lock(path.with_suffix(".lock"), wait=True):  # several processes need the same images at first
                if not path.is_file():
                    array = decode()
                    try:
                        with atomic_write(path, array.nbytes + _RESERVE) as part, part.open("wb") as opened:
                            np.save(opened, array)
                    except NoSpaceError as error:
                        _log.warning("%s Images are decoded again where they do not fit into memory.", error)
                        return array
        mapped: Pixels = np.load(path, mmap_mode="r")
        return mapped

    def _cost(self, array: Pixels) -> int:
        return self.memory // _MAPPED if isinstance(array, np.memmap) else array.nbytes
