import logging
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

from microseg.errors import ResourceLimitError
from microseg.limits import _idle, bound_log, run_limited


def test_results_and_exceptions_pass():
    assert np.array_equal(run_limited("a", np.arange, 5), np.arange(5))
    with pytest.raises(ValueError, match="math domain"):
        run_limited("a", math.sqrt, -1.0)


def several_arrays(length: int) -> dict[str, np.ndarray]:
    values = np.arange(length, dtype=np.int64)
    return {"all": values, "none": values[:0], "column": values.reshape(-1, 2)[:, :1], "bytes": values.astype(np.uint8)}


def test_arrays_pass_whole_and_large_ones_leave_no_memory():
    for length in (2**24, 10, 2**20):  # 128 MiB, 80 bytes, 8 MiB
        expected = several_arrays(length)
        for name, values in run_limited("a", several_arrays, length, memory=2**32).items():
            assert np.array_equal(values, expected[name]), (length, name)
            values[:1] = 0  # the result is a copy
        assert os.fstat(_idle.take()._memory).st_size <= 2**25


def test_an_array_comes_in_one_system_call(monkeypatch):
    """After each, a thread may wait milliseconds for Python's lock, which other threads keep."""
    read, calls = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args) or read(*args))
    assert len(run_limited("a", np.ones, 2**21)) == 2**21  # 16 MiB
    assert len(calls) == 1


def test_the_process_is_reused():
    assert run_limited("a", os.getpid) == run_limited("a", os.getpid) != os.getpid()


def test_time_without_end_is_refused():
    started = time.monotonic()
    with pytest.raises(ResourceLimitError, match=r"^a\.tif: expected to be read in 0\.1 s"):
        run_limited("a.tif", time.sleep, 600, seconds=0.1)
    with pytest.raises(ResourceLimitError, match=r"it took longer|it was not after"):
        run_limited("a.tif", sum, range(10**12), seconds=0.5)
    assert time.monotonic() - started < 300


def test_memory_without_end_is_refused():
    with pytest.raises(ResourceLimitError, match="more memory"):
        run_limited("a.tif", np.ones, 2**28, memory=2**30)
    assert run_limited("a.tif", len, [1, 2]) == 2


def test_a_crash_is_refused():
    with pytest.raises(ResourceLimitError, match="SIGABRT"):
        run_limited("a.tif", os.abort)
    assert run_limited("a.tif", len, [1]) == 1


def test_what_cannot_be_sent_is_an_error_and_not_a_hang():
    with pytest.raises(RuntimeError, match="pickle"):
        run_limited("a.tif", open, os.devnull)


def test_log_lines_are_bounded(caplog):
    bound_log("test.noisy")
    for number in range(1000):
        logging.getLogger("test.noisy").warning("fault %d", number)
    assert len(caplog.records) == 20
    assert "left out" in caplog.text


def chained(text: str) -> None:
    raise ValueError(text) from OSError(5, "share")


def test_the_cause_of_an_exception_passes():
    with pytest.raises(ValueError, match=r"^x$") as caught:
        run_limited("a.tif", chained, "x")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == 5


def test_relative_paths_are_those_of_the_current_folder(tmp_path, monkeypatch):
    """Also of a process that was started in another one."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert run_limited("x.txt", Path.read_text, Path("x.txt")) == name
