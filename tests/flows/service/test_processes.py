"""Child processes end with the service, also when it is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.service.processes import Children, exclusive, notify_systemd
from microseg.config.environment import Home
from microseg.errors import MicrosegError, SettingsError

SERVICE = """
import os, sys, time
from pathlib import Path
from flows.service import guard
from flows.service.processes import Children, exclusive
from microseg.config.environment import Home
guard.STOP_SECONDS = 0.5
with exclusive(Home(Path(sys.argv[1])), "serve") as record:
    children = Children(record)
    child = children.start("sleeper", ["tests.flows.service.sleeper", sys.argv[1]])
    print(children._guard.pid, flush=True)
    time.sleep(300)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def children(home: Home) -> Iterator[Children]:
    with exclusive(home, "serve") as record:
        children = Children(record)
        yield children
        children.stop(1)
        children.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def pids(home: Home) -> list[int]:
    """The sleeper and its own child."""
    file = home.root / "pids"
    return [int(line) for line in file.read_text().split()] if file.is_file() else []


def start_service(home: Home) -> tuple[subprocess.Popen[str], int]:
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(home.root)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert service.stdout is not None
    guard = int(service.stdout.readline())
    until(lambda: len(pids(home)) == 2)
    return service, guard


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_child_reports_that_it_is_ready(children: Children, home: Home) -> None:
    child = children.start("sleeper", ["tests.flows.service.sleeper", str(home.root)])
    until(lambda: child.ready)


def test_all_that_a_child_has_started_ends_with_it(children: Children, home: Home) -> None:
    child = children.start("sleeper", ["tests.flows.service.sleeper", str(home.root)])
    until(lambda: len(pids(home)) == 2)
    children.stop_one(child, 10)
    until(lambda: not any(map(running, pids(home))))


def test_the_last_output_of_an_ended_child_is_shown(children: Children, home: Home) -> None:
    child = children.start("The child", ["tests.flows.service.no_such_module"], log=home.root / "logs" / "child.log")
    child.process.wait(300)
    with pytest.raises(MicrosegError, match=r"(?s)The child ended with exit code 1.*No module named"):
        children.check()


@pytest.mark.parametrize("guard_too", [False, True])
def test_a_killed_service_leaves_nothing_that_the_next_start_meets(
    home: Home, guard_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.service.guard.STOP_SECONDS", 0.5)
    service, guard = start_service(home)
    if guard_too:
        os.kill(guard, signal.SIGSTOP)  # so that it does not notice before it is killed
    service.kill()
    service.wait()
    if guard_too:
        os.kill(guard, signal.SIGKILL)
        assert all(map(running, pids(home)))
        with exclusive(home, "serve"):
            pass
    until(lambda: not any(map(running, pids(home))))


def test_a_process_that_got_the_number_of_an_ended_one_is_left_alone(home: Home) -> None:
    record = home.records / "service" / f"serve-{socket.gethostname()}.json"
    record.parent.mkdir(parents=True)
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        created = psutil.Process(other.pid).create_time()
        record.write_text(json.dumps([{"pid": 1, "created": 0}, {"pid": other.pid, "created": created - 100}]))
        with exclusive(home, "serve"):
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("text", ["", "[" * 20_000, "{}", "[1]", '[{"pid": "x"}]', '[{"pid": 1}]'])
def test_a_damaged_record_does_not_prevent_the_next_start(home: Home, text: str) -> None:
    record = home.records / "service" / f"serve-{socket.gethostname()}.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with exclusive(home, "serve"):
        pass


def test_a_running_service_is_named(home: Home) -> None:
    service, _ = start_service(home)
    try:
        with (
            pytest.raises(SettingsError, match=f"process {service.pid} is one. Stop it first: kill {service.pid}"),
            exclusive(home, "serve"),
        ):
            pass
    finally:
        service.kill()
        service.wait()


def test_systemd_is_told_that_the_service_is_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notify_systemd("READY=1")  # nothing, where systemd did not start this process
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        monkeypatch.chdir(tmp_path)  # its path would be too long for a socket
        systemd.bind("notify")
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "notify")
        notify_systemd("READY=1")
        assert systemd.recv(100) == b"READY=1"
