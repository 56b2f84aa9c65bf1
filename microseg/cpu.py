"""Process settings that make PyTorch faster on CPUs: memory allocation, and how threads wait.

**Memory.** By default glibc serves each block above a few hundred kilobytes with a fresh ``mmap`` and returns it on
``free``. A network allocates such blocks thousands of times a second, and each causes page faults. Raising the
thresholds keeps the blocks in the process, without page faults (``python -m benchmarks.allocator`` measures the gain).
In return, the process keeps its peak memory until it ends.

**Waiting.** The threads of an OpenMP program spin while they wait for each other. On a machine with other load, a
spinning thread takes the core that another thread needs, and a step takes several times as long. Sleeping instead costs
almost nothing on an idle machine.
"""

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

__all__ = ["available_cores", "has_nvidia_device", "return_memory", "set_passive_waiting", "tune_allocator"]

# malloc.h; the values are ints, so nothing above 2^31 - 1
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1
_MMAP_THRESHOLDS = (2**30, 2**25)  # older glibc refuses more than 32 MiB
_TOP_PAD = 2**26


@functools.cache
def tune_allocator() -> bool:
    """Raise glibc's mmap and trim thresholds for this process, once.

    Called by everything that computes with PyTorch; later calls do nothing.

    Returns:
        Whether the thresholds are set. False if the C library is not glibc (macOS, Windows, musl), where this is not
        needed.

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
    shared = mallopt(_M_ARENA_MAX, 1)  # otherwise each thread keeps its peak memory
    return bool(raised and trimmed and padded and shared)


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (Linux)."""
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(affinity, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit
        return affinity


def return_memory() -> None:
    """Return freed memory to the system, which `tune_allocator` would keep in the process."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def has_nvidia_device() -> bool:
    """Whether there is an NVIDIA device (Linux); needs no PyTorch."""
    return Path("/proc/driver/nvidia/version").exists()


def set_passive_waiting() -> None:
    """Let OpenMP threads sleep while they wait, unless the environment variable is set, or there is an NVIDIA device.

    OpenMP reads the environment when PyTorch is loaded, so the package calls this before it imports anything. Where the
    device computes, its driver waits for no OpenMP thread, and the few steps on the CPU shall be short.
    """
    if has_nvidia_device():
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
