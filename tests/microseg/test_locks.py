"""Locks between processes."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from filelock import FileLock

from microseg.errors import LockedError, NoSpaceError, is_transient
from microseg.locks import exclusive, lock_file, try_lock

HOLD = (
    "import sys, time; from pathlib import Path; from microseg.locks import exclusive\n"
    "with exclusive(Path(sys.argv[1]), 'the lock'):\n"
    "    print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_second_process_is_told_who_holds_the_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    expected = rf"The outputs in /x is in use by process {holder.pid} of \w+ on .*, since 20.*\+00:00\. Wait"
    with pytest.raises(LockedError, match=expected) as caught, exclusive(tmp_path / "l", "the outputs in /x"):
        pass
    assert is_transient(caught.value)


def test_second_process_waits_and_goes_on_when_the_first_dies(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    messages: list[str] = []

    def end_the_other(message: str) -> None:
        messages.append(message)
        holder.kill()

    with exclusive(tmp_path / "l", "the lock", waiting=end_the_other):
        assert f'"pid": {os.getpid()}' in (tmp_path / "l.owner").read_text()
    assert messages
    assert f"process {holder.pid} of" in messages[0]


def test_lock_is_free_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), exclusive(tmp_path / "a" / "l", "the lock"):
        raise ValueError("x")
    with exclusive(tmp_path / "a" / "l", "the lock"):
        pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["l"]


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with exclusive(tmp_path / "l", "the lock", waiting=lambda _: None):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.01)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize("take", [lock_file, try_lock, lambda path: exclusive(path, "the outputs")])
def test_a_full_disk_is_reported_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path], AbstractContextManager[object]]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileLock, "acquire", full)
    with pytest.raises(NoSpaceError, match="disk is full"), take(tmp_path / "folder" / "a.lock"):
        pass
