"""A part that ends is started again, later each time; one that fails again and again ends the service."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.service.processes import Children, exclusive
from flows.service.supervisor import Part, RestartPolicy, supervise
from microseg.config.environment import Home
from microseg.errors import MicrosegError

QUICK = RestartPolicy(first_delay=0.1, longest_delay=0.2, healthy_after=60, max_failures=3)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    home = Home(tmp_path / "home")
    home.create()
    with exclusive(home, "serve") as record:
        children = Children(record)
        yield children
        children.stop(1)
        children.close()


def test_delays_double_up_to_the_longest() -> None:
    policy = RestartPolicy()
    assert [policy.delay(failures) for failures in (1, 2, 3, 6, 7, 8, 20)] == [1, 2, 4, 32, 60, 60, 60]
    assert 900 < sum(policy.delay(failures) for failures in range(1, policy.max_failures)) < 1800  # 15 to 30 minutes


def test_a_part_that_ends_is_started_again(children: Children, tmp_path: Path) -> None:
    part, stop, ready = Part("The sleeper", "tests.flows.service.sleeper", (str(tmp_path),)), threading.Event(), []
    killed: list[int] = []

    def kill_once() -> None:
        ready.append(True)
        assert part.child is not None
        killed.append(part.child.process.pid)
        part.child.process.kill()
        threading.Thread(target=stop_when_restarted).start()

    def stop_when_restarted() -> None:
        end = time.monotonic() + 300
        while not (part.ready and part.child is not None and part.child.process.pid != killed[0]):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        stop.set()

    supervise([part], children, stop, on_ready=kill_once, policy=QUICK)
    assert ready == [True]  # announced once
    assert part.failures == 1
    assert part.child is not None
    assert part.child.process.pid != killed[0]


def test_a_part_that_fails_again_and_again_ends_the_service(children: Children) -> None:
    part = Part("The part", "tests.flows.service.no_such_module")
    with pytest.raises(MicrosegError, match="The part ended with exit code 1 for the 3th time in a row"):
        supervise([part], children, threading.Event(), on_ready=lambda: None, policy=QUICK)
