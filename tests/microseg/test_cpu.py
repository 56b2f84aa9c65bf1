import ctypes
import os
import platform
import subprocess
import sys

import pytest

from microseg.cpu import has_nvidia_device, set_passive_waiting, tune_allocator

_MAPPED_BLOCKS = """
import ctypes, sys
from microseg.cpu import tune_allocator
print([tune_allocator() for _ in range(int(sys.argv[1]))])
class Counts(ctypes.Structure):  # struct mallinfo2, malloc.h
    _fields_ = [(n, ctypes.c_size_t) for n in "arena ordblks smblks hblks hblkhd a b c d e".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Counts, ctypes.c_void_p
before = libc.mallinfo2().hblks
blocks = [libc.malloc(ctypes.c_size_t(size)) for size in (2**20, 2**23, 2**24)]
print(libc.mallinfo2().hblks - before)
"""


def on_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def run(code: str, *arguments: str, **environment: str | None) -> list[str]:
    values = {**os.environ, **environment}
    printed = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={name: value for name, value in values.items() if value is not None},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return printed.splitlines()


@pytest.mark.skipif(
    not (on_glibc() and hasattr(ctypes.CDLL(None), "mallinfo2")), reason="needs mallinfo2 of glibc 2.33 or newer"
)
def test_allocator_keeps_memory_in_the_process() -> None:
    """Blocks of 1, 8 and 16 MiB: each has a separate mapping by default, none when tuned."""
    assert run(_MAPPED_BLOCKS, "0") == ["[]", "3"]
    assert run(_MAPPED_BLOCKS, "3") == ["[True, True, True]", "0"]


def test_does_nothing_with_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    once = tune_allocator.__wrapped__
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", ""))
    assert once() is False
    monkeypatch.setattr(sys, "platform", "darwin")
    assert once() is False


def test_sets_thresholds_once() -> None:
    tune_allocator()
    before = tune_allocator.cache_info().misses
    assert tune_allocator() == on_glibc()
    assert tune_allocator.cache_info().misses == before


def test_waits_passively_unless_the_environment_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    set_passive_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("microseg.cpu.has_nvidia_device", lambda: True)
    set_passive_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ  # it is the device that computes
    monkeypatch.setattr("microseg.cpu.has_nvidia_device", lambda: False)
    set_passive_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_package_sets_passive_waiting_before_pytorch_is_loaded() -> None:
    code = "import sys, os, microseg; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    assert run(code, OMP_WAIT_POLICY=None) == ["None False" if has_nvidia_device() else "PASSIVE False"]
    assert run(code, OMP_WAIT_POLICY="ACTIVE") == ["ACTIVE False"]


_FREED = """
import ctypes
from microseg.cpu import return_memory, tune_allocator
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
tune_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
blocks = [libc.malloc(ctypes.c_size_t(2**22)) for _ in range(32)]
for block in blocks:
    ctypes.memset(ctypes.c_void_p(block), 1, 2**22)
full = resident()
for block in blocks[:-1]:
    libc.free(block)
kept = full - resident()
return_memory()
print(kept < 2**24, full - resident() > 2**26)
"""


@pytest.mark.skipif(not on_glibc(), reason="of glibc")
def test_keeps_freed_memory_until_it_is_returned() -> None:
    assert run(_FREED) == ["True True"]
