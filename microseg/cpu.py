"""Makes PyTorch on a CPU as fast as the machine allows: its memory, and how its threads wait.

**Memory.** By default glibc serves each block above a few hundred kilobytes with a fresh ``mmap`` and returns it on
``free``. A network allocates such blocks thousands of times a second, and on CPUs each of them is paid in page faults.
Raising the thresholds keeps the blocks in the process: the same arithmetic, faster by as much as page faults are dear
(``python -m benchmarks.allocator`` measures it). The price is that the process keeps its peak memory until it
ends.

**Waiting.** The threads of an OpenMP program spin while they wait for one another. On a machine that others use too, a
spinning thread takes the core that the awaited one needs, and a step takes several times as long. Waiting asleep
costs next to nothing on an idle machine.
"""

import ctypes
import functools
import os
import platform
import sys

__all__ = ["return_memory", "tune_allocator", "wait_asleep"]

# malloc.h; the values are ints, so nothing above 2^31 - 1
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1
_MMAP_THRESHOLDS = (2**30, 2**25)  # older glibc refuses more than 32 MiB
_TOP_PAD = 2**26


@functools.cache
def tune_allocator() -> bool:
    """Raise glibc's mmap and trim thresholds for this process, once.

    Called wherever microseg starts to compute with PyTorch; later calls do nothing.

    Returns:
        Whether the thresholds are set. False where the C library is not glibc (macOS, Windows, musl): nothing is
        needed there.

    Reference:
        ``mallopt(3)``.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    raised = any(mallopt(_M_MMAP_THRESHOLD, bytes_) for bytes_ in _MMAP_THRESHOLDS)
    trimmed = mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    padded = mallopt(_M_TOP_PAD, _TOP_PAD)
    shared = mallopt(_M_ARENA_MAX, 1)  # else each thread keeps a peak of its own
    return bool(raised and trimmed and padded and shared)


def return_memory() -> None:
    """Give freed memory back to the system, where `tune_allocator` keeps it in the process."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    OpenMP reads its environment when PyTorch is loaded, so the package calls this before it imports anything.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
